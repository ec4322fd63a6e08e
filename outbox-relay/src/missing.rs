//! A relay for a database whose feature is off does not compile, and the compiler names the feature. Without this it would say that there
//! is no such function.

macro_rules! missing {
    ($feature:literal, $function:ident ($url:ident $(, $wal:ident)?), $message:literal) => {
        #[cfg(not(feature = $feature))]
        #[diagnostic::on_unimplemented(message = $message, label = "the relay of this database is not built in")]
        #[doc(hidden)]
        #[expect(non_camel_case_types, reason = "named as the function")]
        pub trait $function {
            fn relay(self) -> crate::Relay;
        }

        #[cfg(not(feature = $feature))]
        impl crate::Relay {
            #[doc(hidden)]
            pub fn $function<U: $function $(, $wal)?>($url: U $(, _: $wal)?) -> Self {
                $url.relay()
            }
        }
    };
}

missing!(
    "mysql",
    mysql(url),
    "`Relay::mysql` takes the feature `mysql` of diesel-outbox-relay: add it to the dependency, features = [\"mysql\"]"
);
missing!(
    "postgres",
    postgres(url),
    "`Relay::postgres` takes the feature `postgres` of diesel-outbox-relay: add it to the dependency, features = [\"postgres\"]"
);
missing!(
    "postgres-wal",
    postgres_wal(url, W),
    "`Relay::postgres_wal` takes the feature `postgres-wal` of diesel-outbox-relay: add it to the dependency, features = [\"postgres-wal\"]"
);
missing!(
    "sqlite",
    sqlite(path),
    "`Relay::sqlite` takes the feature `sqlite` of diesel-outbox-relay: add it to the dependency, features = [\"sqlite\"]"
);
