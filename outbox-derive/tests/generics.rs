//! Generic events: type parameters, lifetimes and constants.

use std::fmt::{self, Display};
use std::marker::PhantomData;

use diesel_outbox::OutboxEvent;
use diesel_outbox_derive::OutboxEvent;
use serde::Serialize;

fn id(event: &impl OutboxEvent) -> String {
    event.to_record().unwrap().aggregate_id().to_owned()
}

fn json(event: &impl OutboxEvent) -> String {
    String::from_utf8(event.to_record().unwrap().payload().unwrap().to_vec()).unwrap()
}

#[test]
fn bounds_are_those_that_the_record_needs() {
    #[derive(Serialize, OutboxEvent)]
    #[outbox(aggregate = "order")]
    enum Event<K, T = u8>
    where
        K: Clone,
    {
        Placed {
            #[outbox(id)]
            key: K,
            data: T,
        },
        Noted {
            #[outbox(id)]
            key: K,
            #[outbox(header)]
            note: Option<T>,
        },
    }
    assert_eq!(json(&Event::Placed { key: 1, data: "x" }), r#"{"key":1,"data":"x"}"#);
    let noted = Event::Noted { key: "k", note: Some(2.5) };
    assert_eq!(noted.to_record().unwrap().headers(), [("note".to_owned(), "2.5".to_owned())]);
}

#[test]
fn parameters_that_the_record_does_not_need_stay_unbound() {
    struct Opaque;
    #[derive(OutboxEvent)]
    #[outbox(aggregate = "order", id(id), tombstone)]
    struct Deleted<T: ?Sized> {
        id: u8,
        of: PhantomData<T>,
    }
    assert_eq!(id(&Deleted::<Opaque> { id: 1, of: PhantomData }), "1");
    assert_eq!(id(&Deleted::<str> { id: 1, of: PhantomData }), "1");
}

#[test]
fn associated_types_are_bound_as_they_are_written() {
    trait Entity {
        type Key;
    }
    struct Order;
    impl Entity for Order {
        type Key = u32;
    }
    #[derive(OutboxEvent)]
    #[outbox(aggregate = "order", tombstone)]
    struct Deleted<E: Entity>(#[outbox(id)] E::Key);
    assert_eq!(id(&Deleted::<Order>(7)), "7");
}

#[test]
fn lifetimes() {
    #[derive(Serialize, OutboxEvent)]
    #[outbox(aggregate = "order")]
    struct Placed<'a, 'b: 'a, T: ?Sized> {
        #[outbox(id)]
        id: &'a str,
        #[outbox(header)]
        note: Option<&'b T>,
    }
    assert_eq!(json(&Placed::<str> { id: "7", note: Some("n") }), r#"{"id":"7","note":"n"}"#);
}

#[test]
fn constants() {
    struct Id<const N: usize>([u8; N]);
    impl<const N: usize> Display for Id<N> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{:?}", self.0)
        }
    }
    impl<const N: usize> Serialize for Id<N> {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_str(self)
        }
    }
    #[derive(Serialize, OutboxEvent)]
    #[outbox(aggregate = "order")]
    struct Placed<const N: usize = 2>(#[outbox(id)] Id<N>);
    assert_eq!(id(&Placed(Id([1, 2]))), "[1, 2]");
}

#[test]
fn functions_see_the_parameters_of_the_type() {
    fn encode<T: Display>(event: &Wrapped<T>) -> Vec<u8> {
        event.value.to_string().into_bytes()
    }
    #[derive(OutboxEvent)]
    #[outbox(aggregate = "a", id = Self::key, payload = encode::<T>)]
    struct Wrapped<T: Display> {
        value: T,
    }
    impl<T: Display> Wrapped<T> {
        fn key(&self) -> String {
            format!("key of {}", self.value)
        }
    }
    let event = Wrapped { value: 5 };
    assert_eq!(id(&event), "key of 5");
    assert_eq!(json(&event), "5");
}

#[test]
fn recursive_types() {
    #[derive(Serialize, OutboxEvent)]
    #[outbox(aggregate = "tree", id(name))]
    struct Tree<T> {
        name: T,
        children: Vec<Tree<T>>,
    }
    let leaf = Tree { name: "b", children: vec![] };
    assert_eq!(
        json(&Tree { name: "a", children: vec![leaf] }),
        r#"{"name":"a","children":[{"name":"b","children":[]}]}"#
    );
}
