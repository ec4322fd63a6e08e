//! A proxy between two programs that delays, slows down, holds back and cuts what passes.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
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
    /// The same for these connections, in the order in which they were let in.
    held: Range<usize>,
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
    let_in: AtomicUsize,
    late: AtomicUsize,
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

    /// Returns how many connections it has let in.
    pub fn let_in(&self) -> usize {
        self.shared.let_in.load(Ordering::SeqCst)
    }

    /// Lets nothing pass on the connections that were let in after so many others, until now. Later ones are not held.
    pub fn hold_those_after(&self, others: usize) {
        self.shared.weather.lock().unwrap().held = others..self.let_in();
    }

    /// Returns how much has passed late because it was held, in pieces of any size.
    pub fn late(&self) -> usize {
        self.shared.late.load(Ordering::SeqCst)
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
        let number = self.let_in.fetch_add(1, Ordering::SeqCst);
        self.pass(number, there.0, there.1);
        self.pass(number, back.1, back.0);
    }

    fn pass(self: &Arc<Self>, number: usize, mut from: TcpStream, to: TcpStream) {
        let (sender, receiver): (Sender<(Instant, Vec<u8>)>, _) = channel();
        let inside = self.clone();
        thread::spawn(move || inside.deliver(number, to, &receiver));
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

    fn holds(&self, number: usize) -> bool {
        let weather = self.weather.lock().unwrap();
        weather.holds || weather.held.contains(&number)
    }

    fn deliver(&self, number: usize, mut to: TcpStream, receiver: &Receiver<(Instant, Vec<u8>)>) {
        for (due, bytes) in receiver {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let is_late = self.holds(number);
            while self.holds(number) {
                thread::sleep(Duration::from_millis(5));
            }
            if to.write_all(&bytes).is_err() {
                break;
            }
            self.late.fetch_add(usize::from(is_late), Ordering::SeqCst);
        }
        let _ = to.shutdown(Shutdown::Both);
    }
}
