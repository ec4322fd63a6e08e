//! How the relay and the operator write their statements.

/// A statement whose text never changes, with `?` for each bound value: Diesel keeps it prepared. On PostgreSQL it names each function and
/// operator so that only the server's own fits: see [`search_path`](crate::source::enter_schema).
macro_rules! statement {
    ($db:ty, $(#[$doc:meta])* $visible:vis $name:ident { $($field:ident: $rust:ty => $sql_type:ty),* } -> $row:ty, $sql:expr) => {
        $(#[$doc])*
        $visible struct $name<'a> {
            $($field: $rust,)*
            lifetime: std::marker::PhantomData<&'a ()>,
        }

        impl diesel::query_builder::QueryFragment<$db> for $name<'_> {
            fn walk_ast<'b>(
                &'b self,
                mut out: diesel::query_builder::AstPass<'_, 'b, $db>,
            ) -> diesel::QueryResult<()> {
                let mut pieces = $sql.split('?');
                out.push_sql(pieces.next().unwrap_or_default());
                $(
                    out.push_bind_param::<$sql_type, _>(&self.$field)?;
                    out.push_sql(pieces.next().unwrap_or_default());
                )*
                Ok(())
            }
        }

        impl diesel::query_builder::QueryId for $name<'_> {
            type QueryId = $name<'static>;
            const HAS_STATIC_QUERY_ID: bool = true;
        }

        impl diesel::query_builder::Query for $name<'_> {
            type SqlType = $row;
        }

        impl<Conn> diesel::RunQueryDsl<Conn> for $name<'_> {}

        impl $name<'_> {
            #[allow(clippy::new_ret_no_self, clippy::needless_lifetimes, clippy::too_many_arguments)]
            $visible fn new<'a>($($field: $rust),*) -> $name<'a> {
                $name { $($field,)* lifetime: std::marker::PhantomData }
            }
        }
    };
}
pub(crate) use statement;
