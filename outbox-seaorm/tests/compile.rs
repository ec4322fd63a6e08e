//! The compiler's errors for emits outside a transaction.

#[test]
fn emitting_outside_a_transaction_does_not_compile_and_the_error_says_what_to_do() {
    trybuild::TestCases::new().compile_fail("tests/fail/*.rs");
}
