//! A proxy to a server. It lets the first connection through, or the first bytes that the server sends, and everything else
//! when it is opened.

use std::io::{self, Read};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

#[derive(Clone, Default)]
struct Opened(Arc<(Mutex<bool>, Condvar)>);

impl Opened {
    fn wait(&self) {
        let (opened, changed) = &*self.0;
        drop(changed.wait_while(opened.lock().unwrap(), |opened| !*opened).unwrap());
    }
}

pub(crate) struct Gate {
    address: SocketAddr,
    server: String,
    opened: Opened,
}

/// How much of the server's output the gate lets through.
const FIRST_BYTES: u64 = 1_000_000;

impl Gate {
    /// A gate to the server in the URL that lets one connection through.
    pub(crate) fn new(database_url: &str) -> Self {
        Self::begin(database_url, |number, opened, client, server| {
            if number > 0 {
                opened.wait();
            }
            join(client, server);
        })
    }

    /// A gate that lets all connections through, but only the first bytes that the server sends.
    pub(crate) fn for_first_bytes(database_url: &str) -> Self {
        Self::begin(database_url, |_, opened, client, server| {
            let mut to_client = client.try_clone().unwrap();
            thread::scope(|scope| {
                scope.spawn(|| {
                    let _ = io::copy(&mut (&server).take(FIRST_BYTES), &mut to_client);
                    opened.wait();
                    let _ = to_client.shutdown(Shutdown::Both);
                });
                let _ = io::copy(&mut &client, &mut &server);
            });
        })
    }

    fn begin(database_url: &str, go_through: fn(usize, Opened, TcpStream, TcpStream)) -> Self {
        let (_, server) = database_url.rsplit_once('@').unwrap();
        let server = server.split_once('/').unwrap().0.to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let gate = Self { address: listener.local_addr().unwrap(), server, opened: Opened::default() };
        let (server, opened) = (gate.server.clone(), gate.opened.clone());
        thread::spawn(move || {
            for (number, client) in listener.incoming().enumerate() {
                let (client, server, opened) = (client.unwrap(), server.clone(), opened.clone());
                thread::spawn(move || {
                    go_through(number, opened, client, TcpStream::connect(server).unwrap());
                });
            }
        });
        gate
    }

    /// The URL of the same database through this gate.
    pub(crate) fn url(&self, database_url: &str) -> String {
        let url = database_url.replace(&self.server, &self.address.to_string());
        assert_ne!(url, database_url);
        url
    }

    pub(crate) fn open(&self) {
        let (opened, changed) = &*self.opened.0;
        *opened.lock().unwrap() = true;
        changed.notify_all();
    }
}

/// Copies bytes in both directions until one side ends.
fn join(client: TcpStream, server: TcpStream) {
    let (mut from_client, mut to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    thread::spawn(move || {
        let _ = io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Both);
    });
    let (mut from_server, mut to_client) = (server, client);
    let _ = io::copy(&mut from_server, &mut to_client);
    let _ = to_client.shutdown(Shutdown::Both);
}
