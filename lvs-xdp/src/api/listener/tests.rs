use std::{
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use axum::{Json, extract::rejection::JsonRejection, routing::post};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::JoinSet,
};

use super::*;
use crate::api::client::Client;

/// Limits that a test can wait for.
const SMALL: Limits = Limits {
    connections: 2,
    head: Duration::from_millis(300),
    body: Duration::from_millis(300),
    answer: Duration::from_millis(300),
    head_size: 8192,
    body_size: 1 << 20,
};
/// What a limit of [`SMALL`] may take to hold.
const LIMIT: Duration = Duration::from_secs(10);

/// A server with one page, which says how long its body is and who has sent it, and one with an endless answer.
struct Server {
    path: PathBuf,
    /// Requests that have come to the page.
    taken: Arc<AtomicUsize>,
    _directory: TempDir,
    _task: JoinSet<()>,
}

impl Server {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let taken = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&taken);
        let page = async move |ConnectInfo(peer): ConnectInfo<Peer>,
                               body: Result<Json<Value>, JsonRejection>| {
            count.fetch_add(1, Ordering::Relaxed);
            body.map(|_| format!("{peer}\n")).map_err(Refusal::from)
        };
        let endless = || async {
            let pieces = futures_util::stream::repeat_with(|| Ok::<_, io::Error>(vec![b'a'; 65536]));
            Body::from_stream(pieces)
        };
        let router = Router::new()
            .route("/page", post(page.clone()))
            .route("/v1/announce", post(page))
            .route("/endless", axum::routing::get(endless));
        let listener = bind(&path, 0o600, None).unwrap();
        let mut task = JoinSet::new();
        task.spawn(serve(listener, router, SMALL));
        Self {
            path,
            taken,
            _directory: directory,
            _task: task,
        }
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.path).await.unwrap()
    }

    /// What is answered to this, until the server closes the connection.
    async fn ask(&self, request: &[u8]) -> String {
        let mut stream = self.connect().await;
        // The server may have said no before it has all.
        let _ = stream.write_all(request).await;
        whole(&mut stream).await
    }

    fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }
}

async fn whole(stream: &mut UnixStream) -> String {
    let mut answer = Vec::new();
    let read = timeout(LIMIT, stream.read_to_end(&mut answer)).await;
    // A connection that was reset has its answer before that.
    let _ = read.expect("the server leaves the connection open");
    String::from_utf8(answer).unwrap()
}

fn post_request(headers: &str, body: &str) -> Vec<u8> {
    format!(
        "POST /page HTTP/1.1\r\nhost: agent\r\ncontent-type: application/json\r\nconnection: close\r\n{headers}\r\n{body}"
    )
    .into_bytes()
}

fn with_length(body: &str) -> Vec<u8> {
    post_request(&format!("content-length: {}\r\n", body.len()), body)
}

#[track_caller]
fn assert_refused(answer: &str, status: u16, part: &str) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let error: Value = serde_json::from_str(body).unwrap();
    let message = error["message"].as_str().unwrap();
    assert!(message.contains(part) && !message.contains('\n'), "{message}");
}

#[tokio::test]
async fn a_request_is_answered_and_its_sender_known() {
    let server = Server::start();
    let answer = server.ask(&with_length("[1, 2]")).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let uid = nix::unistd::getuid();
    let sender = format!("uid {uid}, process {}\n", std::process::id());
    assert!(answer.ends_with(&sender), "{answer}");
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_before_it_is_read() {
    let server = Server::start();
    // As long as it may be, a mebibyte.
    let largest = format!("[{}1]", " ".repeat((1 << 20) - 3));
    assert!(
        server
            .ask(&with_length(&largest))
            .await
            .starts_with("HTTP/1.1 200 ")
    );
    assert_eq!(server.taken(), 1);
    // By its length, with no byte of it sent.
    let announced = post_request("content-length: 1048577\r\n", "");
    assert_refused(
        &server.ask(&announced).await,
        413,
        "larger than 1 MiB: send it in",
    );
    // By what comes, where no length is given.
    let mut chunks = post_request("transfer-encoding: chunked\r\n", "");
    for _ in 0..17 {
        chunks.extend_from_slice(b"10000\r\n");
        chunks.extend_from_slice(&[b' '; 0x10000]);
        chunks.extend_from_slice(b"\r\n");
    }
    assert_refused(&server.ask(&chunks).await, 413, "larger than 1 MiB: send it in");
    assert_eq!(server.taken(), 1);
}

#[tokio::test]
async fn the_projects_own_client_hears_why_a_body_is_refused() {
    let server = Server::start();
    let client = Client::new(server.path.clone());
    let addresses = vec!["192.168.2.100".parse().unwrap(); 1 << 20];
    let error = client.announce(addresses).await.unwrap_err().to_string();
    assert!(error.contains("larger than 1 MiB"), "{error}");
    assert_eq!(server.taken(), 0);
}

#[tokio::test]
async fn a_body_that_comes_too_slowly_is_refused() {
    let server = Server::start();
    let begun = post_request("content-length: 6\r\n", "[1, ");
    assert_refused(&server.ask(&begun).await, 408, "was not there after");
    assert_eq!(server.taken(), 0);
}

#[tokio::test]
async fn nesting_has_an_end() {
    let server = Server::start();
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    assert_refused(
        &server.ask(&with_length(&deep)).await,
        400,
        "recursion limit exceeded",
    );
}

#[tokio::test]
async fn a_head_that_is_too_slow_or_too_large_ends_the_connection() {
    let server = Server::start();
    let begun = Instant::now();
    assert_eq!(server.ask(b"").await, "");
    assert!(begun.elapsed() >= SMALL.head);
    server.ask(b"POST /page HTTP/1.1\r\nhost: ag").await;
    let large = post_request(&format!("x-large: {}\r\n", "a".repeat(9000)), "");
    assert!(server.ask(&large).await.starts_with("HTTP/1.1 431 "));
    let many = post_request(&"x: y\r\n".repeat(200), "");
    assert!(server.ask(&many).await.starts_with("HTTP/1.1 431 "));
    assert_eq!(server.taken(), 0);
}

#[tokio::test]
async fn one_client_too_many_is_told_so() {
    let server = Server::start();
    let first = server.connect().await;
    let _second = server.connect().await;
    let third = server.ask(&with_length("[]")).await;
    assert_refused(&third, 503, "serves 2 clients already");
    assert_eq!(server.taken(), 0);
    drop(first);
    let end = Instant::now() + LIMIT;
    loop {
        let answer = server.ask(&with_length("[]")).await;
        if answer.starts_with("HTTP/1.1 200 ") {
            break;
        }
        assert!(Instant::now() < end, "{answer}");
    }
    assert_eq!(server.taken(), 1);
}

#[tokio::test]
async fn who_does_not_read_an_answer_does_not_keep_it() {
    let server = Server::start();
    let mut stream = server.connect().await;
    stream
        .write_all(b"GET /endless HTTP/1.1\r\nhost: agent\r\n\r\n")
        .await
        .unwrap();
    sleep(2 * SMALL.answer).await;
    // What is in the socket's buffer, and then the end.
    let answer = whole(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn the_socket_has_its_mode_and_its_group() {
    use std::os::unix::fs::MetadataExt as _;

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let group = nix::unistd::getgid();
    let _listener = bind(&path, 0o640, Some(group)).unwrap();
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o640);
    assert_eq!(metadata.gid(), group.as_raw());
    assert_eq!(
        bind(&path, 0o640, None).unwrap_err().kind(),
        io::ErrorKind::AddrInUse
    );
}
