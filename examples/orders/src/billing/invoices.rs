use diesel::prelude::*;
use diesel_outbox_kafka::consumer::HandlerError;
use uuid::Uuid;

use crate::events::OrderEvent;

diesel::table! {
    invoice (number) {
        number -> BigInt,
        order_id -> Uuid,
        customer -> Text,
        total_cents -> BigInt,
        paid -> Bool,
    }
}

/// Handles one event. The consumer calls it once for each event, in the transaction that records the event's id in the inbox.
pub(crate) fn handle(c: &mut PgConnection, event: OrderEvent) -> Result<(), HandlerError> {
    match event {
        OrderEvent::Placed { order_id, customer, total_cents } => write(c, order_id, &customer, total_cents)?,
        OrderEvent::Paid { order_id } => settle(c, order_id)?,
    }
    Ok(())
}

fn write(c: &mut PgConnection, order_id: Uuid, customer: &str, total_cents: i64) -> QueryResult<()> {
    diesel::insert_into(invoice::table)
        .values((
            invoice::order_id.eq(order_id),
            invoice::customer.eq(customer),
            invoice::total_cents.eq(total_cents),
        ))
        .execute(c)?;
    Ok(())
}

fn settle(c: &mut PgConnection, order_id: Uuid) -> Result<(), HandlerError> {
    let of_order = invoice::table.filter(invoice::order_id.eq(order_id));
    match diesel::update(of_order).set(invoice::paid.eq(true)).execute(c)? {
        // The order's OrderPlaced may be a dead letter. Then this event becomes one too, and can be sent again after it.
        0 => Err(format!("there is no invoice for the order {order_id}").into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use diesel_outbox::Record;
    use diesel_outbox_kafka::consumer::Received;
    use outbox_tests::Postgres;

    use super::*;

    /// The records are what the service that takes orders emits. No Kafka is needed.
    #[test]
    fn an_order_gets_an_invoice_which_is_settled_when_the_order_is_paid() {
        let database = Postgres::shared().database();
        crate::migrate(database.url()).unwrap();
        let conn = &mut database.connect();
        let order_id = Uuid::now_v7();
        let event = |event_type: &str, payload: serde_json::Value| {
            let record = Record::new("order", order_id.to_string(), event_type).json(&payload).unwrap();
            Received::from_event(&record).unwrap().decode::<OrderEvent>().unwrap()
        };
        let paid = || event("OrderPaid", serde_json::json!({ "order_id": order_id }));
        assert!(handle(conn, paid()).is_err(), "there is no invoice yet");
        let placed = serde_json::json!({ "order_id": order_id, "customer": "Ada", "total_cents": 990 });
        handle(conn, event("OrderPlaced", placed)).unwrap();
        handle(conn, paid()).unwrap();
        let invoices: Vec<(i64, bool)> =
            invoice::table.select((invoice::total_cents, invoice::paid)).load(conn).unwrap();
        assert_eq!(invoices, [(990, true)]);
    }
}
