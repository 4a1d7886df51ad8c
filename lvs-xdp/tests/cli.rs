//! The binary itself: exit statuses, one line for every fault, and what it says to an agent.

use std::{
    fs, iter,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::SystemTime,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{RawQuery, State},
    http::{HeaderMap, StatusCode, header::ACCEPT},
    routing::{get, post},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::UnixListener, runtime, sync::oneshot};

const BINARY: &str = env!("CARGO_BIN_EXE_lvs-xdp");

/// What the agent of [`FakeAgent`] lists.
fn services() -> Value {
    json!([{
        "protocol": "tcp", "address": "192.168.2.100", "port": 80, "scheduler": "sh", "flags": ["port"],
        "persistence": { "timeout": 600, "mask": "255.255.255.0" }, "removal": "reset", "slow_start": 60,
        "settings": { "sloppy_tcp": 1 },
        "stats": { "connections": 4, "packets": 40, "bytes": 4000 },
        "rates": { "connections": 2, "packets": 20, "bytes": 2000 },
        "servers": [
            {
                "address": "192.168.2.210", "port": 80, "weight": 10, "method": "dr", "upper_threshold": 100,
                "lower_threshold": 80, "state": "ready",
                "mac": "02:00:00:00:00:01", "interface": "eth0", "active": 2, "inactive": 1, "persistent": 5,
                "effective_weight": 4,
                "stats": { "connections": 3, "packets": 30, "bytes": 3000 },
                "handshakes": { "syns": 4, "repeated": 1, "acknowledged": 2, "microseconds": 7000 },
                "rates": { "connections": 2, "packets": 20, "bytes": 2000 }
            },
            {
                "address": "192.168.2.220", "port": 80, "weight": 0, "method": "dr", "drain": {},
                "state": "not-on-link",
                "mac": null, "interface": null, "active": 0, "inactive": 0, "persistent": 0, "effective_weight": 0,
                "stats": { "connections": 1, "packets": 10, "bytes": 1000 },
                "handshakes": { "syns": 0, "repeated": 0, "acknowledged": 0, "microseconds": 0 },
                "rates": { "connections": 0, "packets": 0, "bytes": 0 }
            }
        ]
    }])
}

fn connections() -> Value {
    json!([{
        "protocol": "tcp", "expires": 897, "state": "ESTABLISHED", "client": "192.168.1.200:40000",
        "virtual_address": "192.168.2.100:80", "destination": "192.168.2.210:80"
    }])
}

fn settings() -> Value {
    json!({
        "expire_nodest_conn": 1, "expire_quiescent_template": 0, "conn_reuse_mode": 1, "sloppy_tcp": 0,
        "sloppy_sctp": 0
    })
}

fn status() -> Value {
    json!({
        "version": "0.1.0", "pid": 4711, "abi": 1, "program_id": 42, "pin_dir": "/sys/fs/bpf/lvs-xdp", "detached": [],
        "tables": [{ "name": "services", "used": 1, "capacity": 4096, "option": "--services" }],
        "timeouts": { "tcp": 900, "tcp_fin": 120, "udp": 300 }, "settings": settings(),
        "interfaces": [
            { "name": "eth0", "index": 2, "mode": "native", "reason": null },
            { "name": "eth1", "index": 3, "mode": "generic", "reason": "operation not supported" }
        ],
        "vips": [
            { "address": "192.168.2.100", "state": "announced" },
            { "address": "192.168.2.101", "state": "withdrawn" },
            { "address": "2001:db8::100", "state": "host" },
            { "address": "2001:db8::101", "state": "silent" }
        ],
        "connections": 512, "connection_capacity": 1024, "services": 1, "servers": 2,
        "reasons": [
            { "name": "forwarded", "verdict": "forward", "help": "sent to a real server", "packets": 40 },
            { "name": "no-server", "verdict": "drop", "help": "no usable real server", "packets": 0 }
        ],
        "warnings": ["192.168.2.220 is not on-link: direct routing cannot reach it"]
    })
}

/// What a [`FakeAgent`] was asked for.
#[derive(Default)]
struct Heard {
    changes: Mutex<Vec<Value>>,
    /// Methods and queries of requests about connections.
    connections: Mutex<Vec<String>>,
}

/// An agent with fixed answers that remembers the changes it was sent, and refuses to clear.
struct FakeAgent {
    directory: TempDir,
    heard: Arc<Heard>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl FakeAgent {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let heard = Arc::default();
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (socket, state) = (directory.path().join("agent.sock"), Arc::clone(&heard));
        let router = Router::new()
            .route("/v1/status", get(async || Json(status())))
            .route("/v1/services", get(list_services))
            .route("/v1/connections", get(list).delete(flush))
            .route("/v1/announce", post(announce))
            .route("/v1/unload", post(async || Json(json!({}))))
            .route("/openapi.json", get(async || Json(json!({ "openapi": "3.1.0" }))))
            .route("/v1/changes", post(change))
            .with_state(state);
        let thread = thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = UnixListener::bind(socket).unwrap();
                ready.send(()).unwrap();
                tokio::select! {
                    served = async { axum::serve(listener, router).await } => served.unwrap(),
                    // An error says that the test is gone: time to end as well.
                    _ = stopped => {}
                }
            });
        });
        is_ready.recv().unwrap();
        Self {
            directory,
            heard,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("agent.sock")
    }

    /// What the agent was sent since this was asked last.
    fn take_changes(&self) -> Value {
        Value::from(std::mem::take(&mut *self.heard.changes.lock().unwrap()))
    }

    /// What it was asked about connections since this was asked last.
    fn take_queries(&self) -> Vec<String> {
        std::mem::take(&mut *self.heard.connections.lock().unwrap())
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Announces what was asked for; of what is asked for without a name, one address.
async fn announce(Json(mut body): Json<Value>) -> Json<Value> {
    if body["addresses"] == json!([]) {
        body["addresses"] = json!(["192.168.2.100"]);
    }
    Json(body)
}

async fn change(State(heard): State<Arc<Heard>>, Json(body): Json<Value>) -> (StatusCode, Json<Value>) {
    let sent = body["changes"].as_array().unwrap().clone();
    let clear = sent.iter().any(|change| change["change"] == "clear");
    heard.changes.lock().unwrap().extend(sent);
    match clear {
        false => (StatusCode::OK, Json(json!({}))),
        true => (
            StatusCode::INTERNAL_SERVER_ERROR,
            Json(json!({ "code": "internal", "message": "the disk is full; see the agent's log" })),
        ),
    }
}

/// All services, or the one that is asked for; there is one.
async fn list_services(RawQuery(query): RawQuery) -> (StatusCode, Json<Value>) {
    match query.as_deref() {
        None | Some("service=tcp%2F192.168.2.100%3A80") => (StatusCode::OK, Json(services())),
        Some(other) => {
            let refusal = json!({ "code": "no-such-service", "message": format!("there is no {other}") });
            (StatusCode::NOT_FOUND, Json(refusal))
        }
    }
}

/// The list in the form that was asked for, in two pieces.
async fn list(
    State(heard): State<Arc<Heard>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> (StatusCode, Body) {
    let query = query.unwrap_or_default();
    let unknown = query.contains("10.0.0.1");
    heard.connections.lock().unwrap().push(format!("GET {query}"));
    if unknown {
        let refusal = json!({ "code": "no-such-service", "message": "there is no service TCP 10.0.0.1:80" });
        return (StatusCode::NOT_FOUND, refusal.to_string().into());
    }
    let pieces = match headers[ACCEPT].to_str().unwrap() {
        "text/plain" => ["PROTOCOL  EXPIRES\n".to_owned(), "TCP       14:57\n".to_owned()],
        _ => {
            let whole = connections().to_string();
            let (first, rest) = whole.split_at(10);
            [first.to_owned(), rest.to_owned()]
        }
    };
    let pieces = pieces.map(Ok::<_, std::io::Error>);
    (
        StatusCode::OK,
        Body::from_stream(futures_util::stream::iter(pieces)),
    )
}

async fn flush(State(heard): State<Arc<Heard>>, RawQuery(query): RawQuery) -> Json<Value> {
    let query = query.unwrap_or_default();
    heard.connections.lock().unwrap().push(format!("DELETE {query}"));
    Json(json!({ "removed": 42 }))
}

/// Runs `program` with words, at the agent's socket, or where there is none.
fn run(program: &Path, socket: &Path, line: &str) -> Output {
    Command::new(program)
        .args(line.split_whitespace())
        .env("LVS_XDP_SOCKET", socket)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Standard output of a call that must succeed.
fn stdout(agent: &FakeAgent, line: &str) -> String {
    let output = run(Path::new(BINARY), &agent.socket(), line);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && stderr.is_empty(),
        "{line}: {}: {stderr}",
        output.status
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Status and the one line of standard error of a call that must fail.
fn failure(socket: &Path, line: &str) -> (i32, String) {
    let output = run(Path::new(BINARY), socket, line);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.stdout.is_empty(), "{line}");
    assert_eq!(stderr.matches('\n').count(), 1, "{line}: {stderr}");
    (output.status.code().unwrap(), stderr)
}

#[test]
fn without_an_agent_one_line_names_the_socket() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("none.sock");
    for line in [
        "status",
        "stats",
        "connections",
        "announce",
        "unload",
        "openapi",
        "service list",
        "service add tcp 10.0.0.1:80",
        "service edit tcp 10.0.0.1:80 --scheduler wrr",
        "server list",
        "server drain tcp 10.0.0.1:80 10.0.0.2 --wait",
        "settings",
        "settings sloppy_tcp 1",
        "connections --json",
        "connections flush --all",
        "server delete tcp 10.0.0.1:80 10.0.0.2",
    ] {
        let (status, text) = failure(&socket, line);
        assert_eq!(status, 1, "{line}");
        assert!(
            text.contains(socket.to_str().unwrap()) && text.contains("lvs-xdp agent"),
            "{line}: {text}"
        );
    }
    let (status, text) = failure(&socket, "ipvsadm -L -n");
    assert_eq!(status, 2);
    assert!(text.contains(socket.to_str().unwrap()), "{text}");
}

#[test]
fn wrong_usage_is_status_2() {
    let nowhere = Path::new("/nonexistent/agent.sock");
    for line in [
        "bogus",
        "service add tcp 10.0.0.1:70000",
        "service add icmp 10.0.0.1:80",
        "service add tcp 10.0.0.1:0",
        "service add tcp 10.0.0.1:80 --netmask 255.255.255.0",
        "settings conn_reuse_mode 4",
        "settings sloppy_tcp 1 --json",
        "connections flush",
        "connections --all",
        "server add tcp 10.0.0.1:80 10.0.0.2:81",
        "server add tcp 10.0.0.1:80 rs1",
        "agent",
        "agent --interface eth0 --interface eth0",
        "completions tcsh",
        "ipvsadm -A -t 10.0.0.1",
    ] {
        assert_eq!(failure(nowhere, line).0, 2, "{line}");
    }
}

#[test]
fn help_and_version_need_nothing() {
    let nowhere = Path::new("/nonexistent/agent.sock");
    for (line, part) in [
        ("--help", "Exit status: 0 done, 1 refused, 2 wrong usage."),
        ("--version", env!("CARGO_PKG_VERSION")),
        (
            "service add --help",
            "lvs-xdp service add tcp 192.168.2.100:80 --scheduler rr",
        ),
        (
            "service edit --help",
            "lvs-xdp service edit tcp 192.168.2.100:80 --no-persistent",
        ),
        (
            "server drain --help",
            "`lvs-xdp server edit --weight N` calls it off",
        ),
        ("server edit --help", "its draining ends"),
        ("connections --help", "flush"),
        ("connections flush --help", "lvs-xdp connections flush --all"),
        ("settings --help", "lvs-xdp settings sloppy_tcp 1"),
        ("ipvsadm -h", "ipvsadm -a|e SERVICE -r RIP"),
        ("ipvsadm --version", "ipvsadm v1.31"),
        ("completions bash", "complete -F"),
        ("man", ".TH lvs-xdp 1"),
    ] {
        let output = run(Path::new(BINARY), nowhere, line);
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{line}: {output:?}"
        );
        assert!(String::from_utf8_lossy(&output.stdout).contains(part), "{line}");
    }
}

#[test]
fn manual_pages_are_written_for_every_command() {
    let directory = tempfile::tempdir().unwrap();
    let pages = directory.path().join("man1");
    let nowhere = Path::new("/nonexistent/agent.sock");
    let output = run(
        Path::new(BINARY),
        nowhere,
        &format!("man --dir {}", pages.display()),
    );
    assert!(output.status.success(), "{output:?}");
    for page in [
        "lvs-xdp.1",
        "lvs-xdp-agent.1",
        "lvs-xdp-service-add.1",
        "lvs-xdp-server-drain.1",
        "lvs-xdp-connections-flush.1",
        "lvs-xdp-settings.1",
        "lvs-xdp-realserver-setup.1",
    ] {
        assert!(
            fs::metadata(pages.join(page)).is_ok_and(|page| page.len() > 100),
            "{page}"
        );
    }
    let (status, text) = failure(
        nowhere,
        &format!("man --dir {}", pages.join("lvs-xdp.1").display()),
    );
    assert!(status == 1 && text.contains("lvs-xdp.1"), "{text}");
}

/// The change that edits the fake agent's service: with these in place of what it has, null for nothing.
fn edited(changes: &Value) -> Value {
    let mut service = services()[0].clone();
    let spec = service.as_object_mut().unwrap();
    spec.remove("stats");
    spec.remove("rates");
    spec.remove("servers");
    for (name, value) in changes.as_object().unwrap() {
        spec.insert(name.clone(), value.clone());
    }
    spec.retain(|_, value| !value.is_null());
    json!({ "change": "edit-service", "service": service })
}

/// The fake agent's settings with another value for one.
fn set(name: &str, value: u32) -> Value {
    let mut settings = settings();
    settings[name] = value.into();
    settings
}

#[test]
fn changes_arrive_as_they_were_typed() {
    let agent = FakeAgent::start();
    let service = json!({ "protocol": "tcp", "address": "192.168.2.100", "port": 80 });
    for (line, change) in [
        (
            "service add udp [2001:db8::100]:53 --scheduler mh --flag port --flag fallback --flag port",
            json!({ "change": "add-service", "service": {
                "protocol": "udp", "address": "2001:db8::100", "port": 53, "scheduler": "mh",
                "flags": ["fallback", "port"] } }),
        ),
        (
            "service add tcp 10.0.0.1:80",
            json!({ "change": "add-service", "service": {
                "protocol": "tcp", "address": "10.0.0.1", "port": 80, "scheduler": "wlc" } }),
        ),
        (
            "service add sctp 10.0.0.1:0 --scheduler lc --persistent --removal default",
            json!({ "change": "add-service", "service": {
                "protocol": "sctp", "address": "10.0.0.1", "port": 0, "scheduler": "lc",
                "persistence": { "timeout": 360 } } }),
        ),
        (
            "service add udp 10.0.0.1:53 --persistent=1 --netmask 255.0.0.0 --one-packet --removal reschedule \
             --slow-start 2m --set sloppy_tcp=0 --set conn_reuse_mode=3 --set sloppy_tcp=1",
            json!({ "change": "add-service", "service": {
                "protocol": "udp", "address": "10.0.0.1", "port": 53, "scheduler": "wlc", "one_packet": true,
                "persistence": { "timeout": 1, "mask": "255.0.0.0" }, "removal": "reschedule",
                "slow_start": 120, "settings": { "conn_reuse_mode": 3, "sloppy_tcp": 1 } } }),
        ),
        (
            "service add tcp 10.0.0.1:80 --check https://www.example.org:8443/up --check-interval 500ms \
             --check-fall 2 --check-status 200,204-205 --check-contains fine --check-insecure --check-target rip \
             --check-initial up --check-on-failure remove --fallback 10.0.0.9 --quorum 2",
            json!({ "change": "add-service", "service": {
                "protocol": "tcp", "address": "10.0.0.1", "port": 80, "scheduler": "wlc",
                "check": {
                    "target": "rip", "port": 8443, "interval": "500ms", "timeout": "500ms", "fall": 2,
                    "initial": "up", "on_failure": "remove",
                    "probe": { "type": "http", "path": "/up", "host": "www.example.org:8443",
                        "status": ["200", "204-205"], "contains": "fine", "tls": { "verify": false } } },
                "quorum": 2, "fallback": { "address": "10.0.0.9" } } }),
        ),
        (
            "service edit tcp 192.168.2.100:80 --check tcp:81 --check-rise 1",
            edited(&json!({ "check": { "port": 81, "rise": 1, "probe": { "type": "tcp" } } })),
        ),
        (
            "service edit tcp 192.168.2.100:80 --check passive --check-window 5s --check-connections 50 \
             --check-share 30 --check-retry 1m --check-on-failure remove",
            edited(&json!({ "check": { "on_failure": "remove", "probe": {
                "type": "passive", "window": "5s", "connections": 50, "share": 30, "retry": "1m" } } })),
        ),
        ("service edit tcp 192.168.2.100:80 --no-check", edited(&json!({}))),
        (
            "server add tcp 192.168.2.100:80 192.168.2.230 --check http:/own",
            json!({ "change": "add-server", "service": {
                    "protocol": "tcp", "address": "192.168.2.100", "port": 80 },
                "server": { "address": "192.168.2.230", "port": 80, "weight": 1, "method": "dr",
                    "check": { "probe": { "type": "http", "path": "/own" } } },
                "require_on_link": true }),
        ),
        (
            "service edit tcp 192.168.2.100:80 --scheduler mh",
            edited(&json!({ "scheduler": "mh" })),
        ),
        (
            "service edit tcp 192.168.2.100:80 --no-flags",
            edited(&json!({ "flags": null })),
        ),
        (
            "service edit tcp 192.168.2.100:80 --persistent",
            edited(&json!({ "persistence": { "timeout": 360, "mask": "255.255.255.0" } })),
        ),
        (
            "service edit tcp 192.168.2.100:80 --netmask 255.255.0.0",
            edited(&json!({ "persistence": { "timeout": 600, "mask": "255.255.0.0" } })),
        ),
        (
            "service edit tcp 192.168.2.100:80 --no-persistent --slow-start 0s --removal default --set sloppy_tcp=",
            edited(&json!({ "persistence": null, "slow_start": null, "removal": null, "settings": null })),
        ),
        (
            "service edit tcp 192.168.2.100:80 --no-one-packet --removal drop --set sloppy_sctp=1",
            edited(&json!({ "removal": "drop", "settings": { "sloppy_tcp": 1, "sloppy_sctp": 1 } })),
        ),
        (
            "service delete tcp 192.168.2.100:80",
            json!({ "change": "delete-service", "service": service }),
        ),
        (
            "server add tcp 192.168.2.100:80 192.168.2.230:80",
            json!({ "change": "add-server", "service": service, "require_on_link": true, "server": {
                "address": "192.168.2.230", "port": 80, "weight": 1, "method": "dr" } }),
        ),
        (
            "server add tcp 192.168.2.100:80 10.9.9.9 --weight 7 --force",
            json!({ "change": "add-server", "service": service, "require_on_link": false, "server": {
                "address": "10.9.9.9", "port": 80, "weight": 7, "method": "dr" } }),
        ),
        (
            "server add tcp 192.168.2.100:80 10.9.9.9 -x 100 --lower-threshold 50",
            json!({ "change": "add-server", "service": service, "require_on_link": true, "server": {
                "address": "10.9.9.9", "port": 80, "weight": 1, "method": "dr",
                "upper_threshold": 100, "lower_threshold": 50 } }),
        ),
        (
            "server edit tcp 192.168.2.100:80 192.168.2.210 --weight 0",
            json!({ "change": "edit-server", "service": service, "server": {
                "address": "192.168.2.210", "port": 80, "weight": 0, "method": "dr",
                "upper_threshold": 100, "lower_threshold": 80 } }),
        ),
        (
            "server edit tcp 192.168.2.100:80 192.168.2.210 --upper-threshold 0 -y 0",
            json!({ "change": "edit-server", "service": service, "server": {
                "address": "192.168.2.210", "port": 80, "weight": 10, "method": "dr" } }),
        ),
        (
            "server edit tcp 192.168.2.100:80 192.168.2.220 --weight 2",
            json!({ "change": "edit-server", "service": service, "server": {
                "address": "192.168.2.220", "port": 80, "weight": 2, "method": "dr" } }),
        ),
        (
            "settings sloppy_tcp 1",
            json!({ "change": "set-settings", "settings": set("sloppy_tcp", 1) }),
        ),
        (
            "settings expire_nodest_conn default",
            json!({ "change": "set-settings", "settings": set("expire_nodest_conn", 0) }),
        ),
        (
            "server delete tcp 192.168.2.100:80 192.168.2.210",
            json!({ "change": "delete-server", "service": service, "server": {
                "address": "192.168.2.210", "port": 80 } }),
        ),
        (
            "ipvsadm -a -t 192.168.2.100:80 -r 192.168.2.230:8080 -g -w 3",
            json!({ "change": "add-server", "service": service, "require_on_link": false, "server": {
                "address": "192.168.2.230", "port": 80, "weight": 3, "method": "dr" } }),
        ),
    ] {
        assert_eq!(stdout(&agent, line), "", "{line}");
        assert_eq!(agent.take_changes(), json!([change]), "{line}");
    }
}

#[test]
fn draining_says_what_is_left() {
    let agent = FakeAgent::start();
    let drained = |drain: Value| {
        let service = json!({ "protocol": "tcp", "address": "192.168.2.100", "port": 80 });
        let server = json!({ "address": "192.168.2.220", "port": 80 });
        json!([{ "change": "drain-server", "service": service, "server": server, "drain": drain }])
    };
    let line = "server drain tcp 192.168.2.100:80 192.168.2.220";
    assert_eq!(
        stdout(&agent, line),
        "connections left: 0 (0 active, 0 inactive)\n"
    );
    assert_eq!(agent.take_changes(), drained(json!({})));

    let before = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let left: Value =
        serde_json::from_str(&stdout(&agent, &format!("{line} --deadline 10m --json"))).unwrap();
    let expected = json!({ "removed": false, "connections": 0, "active": 0, "inactive": 0, "persistent": 0 });
    assert_eq!(left, expected);
    let mut sent = agent.take_changes();
    let deadline = sent[0]["drain"]["deadline"].take().as_u64().unwrap();
    assert!((before + 600..before + 660).contains(&deadline), "{deadline}");

    // Gone already: there is nothing to wait for.
    let line = "server drain tcp 192.168.2.100:80 192.168.2.230 --wait";
    assert_eq!(stdout(&agent, line), "removed\n");
    // Somebody else's edit came between.
    let line = "server drain tcp 192.168.2.100:80 192.168.2.210 --wait";
    let (status, text) = failure(&agent.socket(), line);
    assert!(
        status == 1 && text.contains("is not being drained any more"),
        "{text}"
    );
}

#[test]
fn connections_are_filtered_by_the_agent() {
    let agent = FakeAgent::start();
    let text = "PROTOCOL  EXPIRES\nTCP       14:57\n";
    for (line, query, printed) in [
        ("connections", "GET ", text),
        (
            "connections --client 192.168.1.9",
            "GET client=192.168.1.9%2F32",
            text,
        ),
        (
            "connections --client 192.168.1.0/24 --server 192.168.2.210 --state established",
            "GET client=192.168.1.0%2F24&server=192.168.2.210&state=ESTABLISHED",
            text,
        ),
        (
            "connections --service tcp/192.168.2.100:80",
            "GET service=tcp%2F192.168.2.100%3A80",
            text,
        ),
        ("connections flush --all", "DELETE ", "42 removed\n"),
        (
            "connections flush --state UDP",
            "DELETE state=UDP",
            "42 removed\n",
        ),
        (
            "connections flush --server 192.168.2.210 --client fd00::/8 --json",
            "DELETE client=fd00%3A%3A%2F8&server=192.168.2.210",
            "{\n  \"removed\": 42\n}\n",
        ),
    ] {
        assert_eq!(stdout(&agent, line), printed, "{line}");
        assert_eq!(agent.take_queries(), [query], "{line}");
    }
    let (status, text) = failure(&agent.socket(), "connections --service tcp/10.0.0.1:80");
    assert_eq!(
        (status, text.as_str()),
        (1, "lvs-xdp: there is no service TCP 10.0.0.1:80\n")
    );
}

#[test]
fn what_is_not_there_cannot_be_edited() {
    let agent = FakeAgent::start();
    for (line, part) in [
        (
            "service edit tcp 10.0.0.1:80 --scheduler rr",
            "no such service: TCP 10.0.0.1:80",
        ),
        ("server list tcp 10.0.0.1:80", "no such service: TCP 10.0.0.1:80"),
        (
            "server edit tcp 192.168.2.100:80 10.0.0.2 --weight 1",
            "no such real server: 10.0.0.2:80",
        ),
        (
            "service edit tcp 10.0.0.1:80 --netmask 255.0.0.0",
            "no such service: TCP 10.0.0.1:80",
        ),
    ] {
        let (status, text) = failure(&agent.socket(), line);
        assert!(status == 1 && text.contains(part), "{line}: {status}: {text}");
    }
    assert_eq!(agent.take_changes(), json!([]));
}

#[test]
fn refusals_are_passed_on() {
    let agent = FakeAgent::start();
    assert_eq!(
        failure(&agent.socket(), "ipvsadm -C"),
        (255, "the disk is full; see the agent's log\n".to_owned())
    );
}

#[test]
fn lists_are_tables_for_people() {
    let agent = FakeAgent::start();
    for (line, table) in [
        (
            "service list",
            "PROTOCOL  VIRTUAL           SCHEDULER  FLAGS  SERVERS  OPTIONS\n\
             TCP       192.168.2.100:80  sh         port         2  persistent=600 netmask=255.255.255.0 \
             removal=reset slow-start=60s sloppy_tcp=1\n",
        ),
        (
            "server list tcp 192.168.2.100:80",
            "PROTOCOL  VIRTUAL           REAL SERVER       METHOD  WEIGHT  EFFECTIVE  STATE        MAC                INTERFACE  ACTIVE  INACTIVE  PERSISTENT  THRESHOLDS  DRAINING\n\
             TCP       192.168.2.100:80  192.168.2.210:80  dr          10          4  ready        02:00:00:00:00:01  eth0            2         1           5  100,80      -\n\
             TCP       192.168.2.100:80  192.168.2.220:80  dr           0          -  not-on-link  -                  -               0         0           0  -           yes\n",
        ),
        (
            "settings",
            "SETTING                    VALUE  DEFAULT\n\
             expire_nodest_conn             1        0\n\
             expire_quiescent_template      0        0\n\
             conn_reuse_mode                1        1\n\
             sloppy_tcp                     0        0\n\
             sloppy_sctp                    0        0\n",
        ),
        ("settings expire_nodest_conn", "1\n"),
        (
            "stats",
            "PROTOCOL  VIRTUAL           REAL SERVER       CONNECTIONS  PACKETS  BYTES\n\
             TCP       192.168.2.100:80  all                         4       40   4000\n\
             TCP       192.168.2.100:80  192.168.2.210:80            3       30   3000\n\
             TCP       192.168.2.100:80  192.168.2.220:80            1       10   1000\n",
        ),
        (
            "status",
            "Agent 0.1.0, process 4711; program 42, layout of the maps 1\n\
             \n\
             Interfaces\n\
             \x20 eth0: native\n\
             \x20 eth1: generic (no native mode: operation not supported)\n\
             \n\
             Virtual addresses\n\
             \x20 192.168.2.100: announced\n\
             \x20 192.168.2.101: withdrawn: no real server is usable\n\
             \x20 2001:db8::100: answered by the host\n\
             \x20 2001:db8::101: not answered: it has no service\n\
             \n\
             Tables\n\
             \x20 connections:  512 of 1024 (50.0 %)\n\
             \x20 services:     1\n\
             \x20 real servers: 2\n\
             \n\
             Packets\n\
             \x20 VERDICT  REASON     PACKETS  MEANING\n\
             \x20 forward  forwarded       40  sent to a real server\n\
             \n\
             Warnings\n\
             \x20 192.168.2.220 is not on-link: direct routing cannot reach it\n",
        ),
        ("unload", ""),
    ] {
        assert_eq!(stdout(&agent, line), table, "{line}");
    }
}

#[test]
fn ipvsadm_lists_the_same_servers() {
    let agent = FakeAgent::start();
    let text = stdout(&agent, "ipvsadm -L -n");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 6, "{text}");
    assert!(
        lines[3].starts_with("TCP  192.168.2.100:80 sh (sh-port)"),
        "{text}"
    );
    assert_eq!(
        [lines[0], lines[4], lines[5]],
        [
            "IP Virtual Server version 1.2.1 (size=4096)",
            "  -> 192.168.2.210:80             Route   10     2          1         ",
            "  -> 192.168.2.220:80             Route   0      0          0         ",
        ]
    );
}

#[test]
fn lists_are_json_for_programs() {
    let agent = FakeAgent::start();
    let parse = |line| serde_json::from_str::<Value>(&stdout(&agent, line)).unwrap();
    assert_eq!(parse("status --json"), status());
    assert_eq!(parse("service list --json"), services());
    assert_eq!(parse("connections --json"), connections());
    assert_eq!(parse("settings --json"), settings());
    assert_eq!(
        parse("settings conn_reuse_mode --json"),
        json!({ "conn_reuse_mode": 1 })
    );
    assert_eq!(parse("openapi"), json!({ "openapi": "3.1.0" }));

    let servers = parse("server list --json");
    assert_eq!(
        servers[0]["service"],
        json!({ "protocol": "tcp", "address": "192.168.2.100", "port": 80 })
    );
    assert_eq!(servers[1]["address"], "192.168.2.220");

    let stats = parse("stats --json");
    assert_eq!(stats[0]["stats"]["connections"], 4);
    assert_eq!(stats[0]["servers"][1]["stats"]["bytes"], 1000);

    let handshakes = parse("handshakes --json");
    let row = json!({
        "service": { "protocol": "tcp", "address": "192.168.2.100", "port": 80 },
        "server": { "address": "192.168.2.210", "port": 80 },
        "syns": 4, "repeated": 1, "acknowledged": 2, "microseconds": 7000, "troubled_percent": 50,
        "mean_microseconds": 3500
    });
    let rows = handshakes.as_array().unwrap();
    assert!(rows.contains(&row), "{handshakes}");
    // Nothing comes in a moment without traffic.
    let none = parse("handshakes --over 1s --json");
    assert!(
        none.as_array().unwrap().iter().all(|row| row["syns"] == 0),
        "{none}"
    );
}

#[test]
fn the_socket_option_goes_before_the_variable() {
    let agent = FakeAgent::start();
    let nowhere = Path::new("/nonexistent/agent.sock");
    for line in [
        "--socket SOCKET service list",
        "service list --socket SOCKET",
        "--socket SOCKET ipvsadm -L",
    ] {
        let line = line.replace("SOCKET", agent.socket().to_str().unwrap());
        let output = run(Path::new(BINARY), nowhere, &line);
        assert!(
            output.status.success() && !output.stdout.is_empty(),
            "{line}: {output:?}"
        );
    }
}

#[test]
fn called_by_its_name_it_is_ipvsadm() {
    let agent = FakeAgent::start();
    let link = agent.directory.path().join("ipvsadm");
    symlink(BINARY, &link).unwrap();
    let by_name = run(&link, &agent.socket(), "-L -n");
    let by_verb = run(Path::new(BINARY), &agent.socket(), "ipvsadm -L -n");
    assert!(by_name.status.success() && !by_name.stdout.is_empty());
    assert_eq!(by_name.stdout, by_verb.stdout);
}

#[test]
fn a_socket_that_is_forbidden_says_so() {
    let agent = FakeAgent::start();
    fs::set_permissions(agent.socket(), fs::Permissions::from_mode(0o000)).unwrap();
    let output = run(Path::new(BINARY), &agent.socket(), "service list");
    // Root may use every socket.
    if nix::unistd::geteuid().is_root() {
        assert!(output.status.success(), "{output:?}");
    } else {
        assert_eq!(output.status.code(), Some(1));
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("run as root"),
            "{output:?}"
        );
    }
}

#[test]
fn a_closed_pipe_is_no_error() {
    let agent = FakeAgent::start();
    for words in [
        &["status"][..],
        &["service", "list", "--json"],
        &["connections"],
        &["ipvsadm", "-L"],
        &["completions", "bash"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = Command::new(BINARY)
            .args(
                iter::once(&"--socket")
                    .chain(&[agent.socket().to_str().unwrap()])
                    .chain(words),
            )
            .stdout(writer)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{words:?}: {output:?}"
        );
    }
}

#[test]
fn what_was_announced_is_named() {
    let agent = FakeAgent::start();
    assert_eq!(stdout(&agent, "announce"), "192.168.2.100 is announced\n");
    assert_eq!(
        stdout(&agent, "announce 192.168.2.7 2001:db8::7"),
        "192.168.2.7 is announced\n2001:db8::7 is announced\n"
    );
    let (status, text) = failure(&agent.socket(), "announce 192.168.2");
    assert_eq!(status, 2);
    assert!(text.contains("192.168.2"), "{text}");
}
