use diesel::prelude::*;
use diesel_outbox_kafka::consumer::HandlerError;

use crate::events::{OrderPaid, OrderPlaced};

diesel::table! {
    invoice (number) {
        number -> BigInt,
        order_id -> Uuid,
        customer -> Text,
        total_cents -> BigInt,
        paid -> Bool,
    }
}

pub(crate) fn write(c: &mut PgConnection, order: OrderPlaced) -> Result<(), HandlerError> {
    diesel::insert_into(invoice::table)
        .values((
            invoice::order_id.eq(order.order_id),
            invoice::customer.eq(order.customer),
            invoice::total_cents.eq(order.total_cents),
        ))
        .execute(c)?;
    Ok(())
}

pub(crate) fn settle(c: &mut PgConnection, order: OrderPaid) -> Result<(), HandlerError> {
    let of_order = invoice::table.filter(invoice::order_id.eq(order.order_id));
    match diesel::update(of_order).set(invoice::paid.eq(true)).execute(c)? {
        // Its OrderPlaced is a dead letter, say. This event will be one too, to be sent again after that one.
        0 => Err(format!("there is no invoice for the order {}", order.order_id).into()),
        _ => Ok(()),
    }
}
