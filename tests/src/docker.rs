//! Servers in containers, if a Docker engine runs.

use std::env;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, OnceLock};
use std::thread;

use testcontainers::core::IntoContainerPort;
use testcontainers::runners::AsyncRunner;
use testcontainers::{ContainerAsync, ContainerRequest, GenericImage, ImageExt};
use tokio::runtime::Runtime;

use crate::host::Host;
use crate::mariadb::Server;
use crate::scratch::scratch;

/// The host at which the ports of containers can be reached, if an engine runs.
pub(crate) fn engine() -> Option<&'static str> {
    static ENGINE: OnceLock<Option<String>> = OnceLock::new();
    let ask = || {
        let address = env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".to_owned());
        let (scheme, place) = address.split_once("://")?;
        match scheme {
            "unix" => answers(UnixStream::connect(place).ok()?).then(|| "127.0.0.1".to_owned()),
            "tcp" | "http" => {
                let (host, _) = place.rsplit_once(':')?;
                answers(TcpStream::connect(place).ok()?).then(|| host.to_owned())
            }
            _ => None,
        }
    };
    ENGINE.get_or_init(ask).as_deref()
}

fn answers(mut stream: impl Read + Write) -> bool {
    let mut answer = String::new();
    stream.write_all(b"GET /_ping HTTP/1.0\r\n\r\n").is_ok()
        && stream.read_to_string(&mut answer).is_ok()
        && answer.ends_with("OK")
}

/// Returns PostgreSQL `major` in a container, at `port`.
pub(crate) fn postgres(major: u32, port: u16, settings: &[String]) -> impl Host + use<> {
    let command = ["postgres"].into_iter().chain(settings.iter().flat_map(|setting| ["-c", setting]));
    let image = GenericImage::new("postgres", &major.to_string())
        .with_mapped_port(port, 5432.tcp())
        .with_env_var("POSTGRES_HOST_AUTH_METHOD", "trust")
        .with_cmd(command.collect::<Vec<_>>());
    Container::new(image)
}

/// Returns MariaDB or MySQL in a container, at `port`.
pub(crate) fn mariadb(server: Server, port: u16, settings: &[String]) -> impl Host + use<> {
    let (image, version) = match server {
        Server::Mariadb => ("mariadb", "10.11"),
        Server::NewerMariadb => ("mariadb", "11.8"),
        Server::Mysql => ("mysql", "8.4"),
    };
    let image = GenericImage::new(image, version)
        .with_mapped_port(port, 3306.tcp())
        .with_env_var("MARIADB_ALLOW_EMPTY_ROOT_PASSWORD", "1")
        .with_env_var("MYSQL_ALLOW_EMPTY_PASSWORD", "1")
        .with_cmd(settings);
    Container::new(image)
}

/// Returns Apache Kafka in a container. Its server properties must make it listen on `port`.
pub(crate) fn kafka(version: &str, port: u16, properties: &[(String, String)]) -> impl Host + use<> {
    let mut image: ContainerRequest<GenericImage> =
        GenericImage::new("apache/kafka", version).with_mapped_port(port, port.tcp());
    for (key, value) in properties {
        image = image.with_env_var(format!("KAFKA_{}", key.to_uppercase().replace('.', "_")), value);
    }
    Container::new(image)
}

/// A container that keeps its port when it is stopped and started again.
struct Container {
    /// Chosen at the first start.
    image: Mutex<Option<ContainerRequest<GenericImage>>>,
    running: OnceLock<ContainerAsync<GenericImage>>,
}

impl Container {
    fn new(image: ContainerRequest<GenericImage>) -> Self {
        Self { image: Mutex::new(Some(image)), running: OnceLock::new() }
    }

    fn call<T: Send>(
        &self,
        action: impl AsyncFnOnce(&ContainerAsync<GenericImage>) -> T + Send,
    ) -> Option<T> {
        self.running.get().map(|container| block_on(async || action(container).await))
    }
}

impl Host for Container {
    fn start(&self) {
        match self.call(async |container| container.start().await) {
            Some(outcome) => outcome.expect("start the container again"),
            None => {
                let image = self.image.lock().unwrap().take().expect("an image that was never started");
                let container = block_on(async || image.start().await).expect("start a container");
                scratch().hold_container(container.id());
                assert!(self.running.set(container).is_ok(), "the container was running already");
            }
        }
    }

    fn stop(&self) {
        let stopped = self.call(async |container| container.stop_with_timeout(Some(30)).await);
        stopped.unwrap_or(Ok(())).expect("stop the container");
    }

    fn crash(&self) {
        let stopped = self.call(async |container| container.stop_with_timeout(Some(0)).await);
        stopped.unwrap_or(Ok(())).expect("kill the container");
    }

    fn pause(&self) {
        let paused = self.call(async |container| container.pause().await);
        paused.unwrap_or(Ok(())).expect("pause the container");
    }

    fn resume(&self) {
        let resumed = self.call(async |container| container.unpause().await);
        resumed.unwrap_or(Ok(())).expect("let the container go on");
    }

    fn failure(&self) -> Option<String> {
        let exited = self.call(async |container| container.exit_code().await.ok().flatten())??;
        let output = self.call(async |container| container.stderr_to_vec().await.unwrap_or_default())?;
        Some(format!("it ended with {exited} and printed\n{}", String::from_utf8_lossy(&output)))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Some(container) = self.running.take() {
            let _ = block_on(async || container.rm().await);
        }
    }
}

/// Runs on a thread of its own, because the caller may be an async test.
fn block_on<T: Send>(action: impl AsyncFnOnce() -> T + Send) -> T {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| Runtime::new().expect("a runtime"));
    thread::scope(|scope| scope.spawn(|| runtime.block_on(action())).join().expect("no panic"))
}
