-- No constraint enforces one invoice for each order. The inbox does, because it handles each event once.
CREATE TABLE invoice (
    number      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id    uuid NOT NULL,
    customer    text NOT NULL,
    total_cents bigint NOT NULL,
    paid        boolean NOT NULL DEFAULT false
);

CREATE INDEX invoice_order_id ON invoice (order_id);
