//! A proxy between two programs that delays, slows down, holds back and cuts what passes.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// What happens to what passes.
#[derive(Clone, Debug, Default)]
struct Weather {
    delay: Duration,
    /// In bytes a second, if it is limited.
    rate: Option<usize>,
    /// Nothing passes, and neither side hears of it.
    holds: bool,
    /// Nobody is let in.
    refuses: bool,
}

/// A proxy on a port of its own.
#[derive(Clone)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    target: Mutex<String>,
    weather: Mutex<Weather>,
    open: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// Opens a port. [`lead_to`](Self::lead_to) says where it leads.
    pub fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let shared = Arc::new(Shared::default());
        let inside = shared.clone();
        thread::spawn(move || listener.incoming().flatten().for_each(|client| inside.accept(client)));
        Self { port, shared }
    }

    /// Sets the address that it leads to.
    pub fn lead_to(&self, target: &str) {
        target.clone_into(&mut self.shared.target.lock().unwrap());
    }

    /// Returns its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Lets each byte arrive this much later.
    pub fn delay(&self, delay: Duration) {
        self.shared.weather.lock().unwrap().delay = delay;
    }

    /// Lets so many bytes a second pass in each direction of each connection.
    pub fn limit(&self, rate: usize) {
        self.shared.weather.lock().unwrap().rate = Some(rate);
    }

    /// Lets nothing pass, as if packets were lost. Connections stay open.
    pub fn hold(&self) {
        self.shared.weather.lock().unwrap().holds = true;
    }

    /// Ends all connections, and lets nobody in.
    pub fn cut(&self) {
        self.shared.weather.lock().unwrap().refuses = true;
        for stream in self.shared.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Lets everything pass again.
    pub fn heal(&self) {
        *self.shared.weather.lock().unwrap() = Weather::default();
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, client: TcpStream) {
        let target = self.target.lock().unwrap().clone();
        if self.weather.lock().unwrap().refuses {
            return;
        }
        let Ok(server) = TcpStream::connect(target) else { return };
        let streams = || Some((client.try_clone().ok()?, server.try_clone().ok()?));
        let (Some(there), Some(back), Some(both)) = (streams(), streams(), streams()) else { return };
        for stream in [&there.0, &there.1] {
            let _ = stream.set_nodelay(true);
        }
        self.open.lock().unwrap().extend([both.0, both.1]);
        self.pass(there.0, there.1);
        self.pass(back.1, back.0);
    }

    fn pass(self: &Arc<Self>, mut from: TcpStream, to: TcpStream) {
        let (sender, receiver): (Sender<(Instant, Vec<u8>)>, _) = channel();
        let inside = self.clone();
        thread::spawn(move || inside.deliver(to, &receiver));
        let inside = self.clone();
        thread::spawn(move || {
            let mut buffer = vec![0; 16 << 10];
            while let Ok(read) = from.read(&mut buffer)
                && read > 0
            {
                let due = Instant::now() + inside.weather.lock().unwrap().delay;
                if sender.send((due, buffer[..read].to_vec())).is_err() {
                    break;
                }
                let rate = inside.weather.lock().unwrap().rate;
                if let Some(rate) = rate {
                    thread::sleep(Duration::from_secs_f64(read as f64 / rate as f64));
                }
            }
        });
    }

    fn deliver(&self, mut to: TcpStream, receiver: &Receiver<(Instant, Vec<u8>)>) {
        for (due, bytes) in receiver {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            while self.weather.lock().unwrap().holds {
                thread::sleep(Duration::from_millis(5));
            }
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    }
}
