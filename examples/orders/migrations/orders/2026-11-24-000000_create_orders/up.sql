CREATE TABLE orders (
    id          uuid PRIMARY KEY,
    customer    text NOT NULL,
    total_cents bigint NOT NULL CHECK (total_cents > 0),
    paid        boolean NOT NULL DEFAULT false
);
