//! The client of the agent's API: HTTP/1.1 over the Unix socket or the network, one connection a request.

mod blocking;

use std::{env, io, net::IpAddr, path::PathBuf, time::Duration};

use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{task::JoinSet, time};

pub use self::blocking::BlockingClient;
use super::{
    configuration::Application,
    filter::{ConnectionFilter, ServiceFilter, ServiceName},
    target::Target,
    types::{
        Announcement, ApiError, Change, Changes, CheckStatus, Configuration, Connection, ErrorCode, Flushed,
        MarkRule, Plan, Rollback, Service, ServiceKey, Status, Version, Zero,
    },
};

/// The environment variable that names the agent's socket.
pub const SOCKET_VARIABLE: &str = "LVS_XDP_SOCKET";

/// The agent's socket where neither an option nor [`SOCKET_VARIABLE`] names one.
pub const DEFAULT_SOCKET: &str = "/run/lvs-xdp/agent.sock";

/// How long an answer, or the next piece of a long one, may take. Adding a real server waits for its neighbour
/// for up to 200 ms, and removing connections reads the whole table; an agent that takes longer than this hangs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// The agent's socket: the option, else [`SOCKET_VARIABLE`] where it is not empty, else [`DEFAULT_SOCKET`].
pub fn socket_path(option: Option<PathBuf>) -> PathBuf {
    choose_socket(option, env::var_os(SOCKET_VARIABLE).map(PathBuf::from))
}

fn choose_socket(option: Option<PathBuf>, variable: Option<PathBuf>) -> PathBuf {
    option
        .or_else(|| variable.filter(|path| !path.as_os_str().is_empty()))
        .unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET))
}

/// Why a request has no good answer. Each message is one line and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no agent to talk to, or it may not be talked to.
    #[error("{}", target.advice(source))]
    Connect {
        /// Where it was to be.
        target: Target,
        /// What the kernel said.
        source: io::Error,
    },
    /// The agent understood the request and refused it.
    #[error(transparent)]
    Refused(#[from] ApiError),
    /// What answered did not speak as an agent of this version does.
    #[error("no proper answer from the agent on {target}: {reason}")]
    Protocol {
        /// Where it is.
        target: Target,
        /// What was wrong with the answer.
        reason: String,
    },
    /// This process could not be made ready to talk to anybody.
    #[error("cannot start the client: {0}")]
    Runtime(#[source] io::Error),
}

/// What was asked of a service, or nothing where there is no such service.
///
/// # Errors
///
/// All others than that.
pub fn if_there<T>(answer: Result<T, ClientError>) -> Result<Option<T>, ClientError> {
    match answer {
        Err(ClientError::Refused(error)) if error.code == ErrorCode::NoSuchService => Ok(None),
        answer => answer.map(Some),
    }
}

/// The form of a list of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListForm {
    /// A JSON array of [`Connection`], one a line.
    Json,
    /// Columns of fixed width under a line of titles.
    Text,
}

impl ListForm {
    fn name(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Text => "text/plain",
        }
    }
}

/// An answer on its way; its connection ends with it.
#[derive(Debug)]
struct Answer {
    response: Response<Incoming>,
    _connection: JoinSet<hyper::Result<()>>,
}

/// A client of one agent. It holds no connection between requests, so an agent that
/// was restarted meanwhile is no fault.
#[derive(Debug, Clone)]
pub struct Client {
    target: Target,
}

impl Client {
    /// A client of the agent at `target`, such as the path of its socket; nothing is opened yet.
    pub fn new(target: impl Into<Target>) -> Self {
        let target = target.into();
        Self { target }
    }

    /// `GET /v1/status`: the agent, its program and its tables.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.get("/v1/status").await
    }

    /// `GET /v1/services`: every virtual service with its real servers.
    pub async fn services(&self) -> Result<Vec<Service>, ClientError> {
        self.get("/v1/services").await
    }

    /// `GET /v1/services`: one virtual service with its real servers; refused where there is none of that name.
    pub async fn service(&self, key: ServiceKey) -> Result<Service, ClientError> {
        let filter = ServiceFilter {
            service: Some(ServiceName(key)),
        };
        let query = serde_urlencoded::to_string(filter).map_err(|error| self.protocol(&error))?;
        let services: Vec<Service> = self.get(&format!("/v1/services?{query}")).await?;
        let service = services.into_iter().find(|service| service.spec.key == key);
        service.ok_or_else(|| self.protocol(&"it has not the service that was asked for"))
    }

    /// `POST /v1/zero`: sets the counters of a service and its real servers to 0, or those of all services.
    pub async fn zero(&self, service: Option<ServiceKey>) -> Result<(), ClientError> {
        self.post("/v1/zero", &Zero { service }).await
    }

    /// `GET /v1/checks`: the health check of every real server that has one.
    pub async fn checks(&self) -> Result<Vec<CheckStatus>, ClientError> {
        self.get("/v1/checks").await
    }

    /// `GET /v1/marks`: the rules that give packets firewall marks.
    pub async fn marks(&self) -> Result<Vec<MarkRule>, ClientError> {
        self.get("/v1/marks").await
    }

    /// `GET /v1/connections`: hands every connection entry on as it comes.
    pub async fn each_connection(&self, mut take: impl FnMut(Connection)) -> Result<(), ClientError> {
        let mut unread = Vec::new();
        let lines = |piece: &[u8]| {
            unread.extend_from_slice(piece);
            let mut rest = unread.as_slice();
            while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
                // One entry a line, the brackets on lines of their own.
                let line = rest[..end].strip_suffix(b",").unwrap_or(&rest[..end]);
                if !matches!(line, b"[" | b"]" | b"") {
                    take(serde_json::from_slice(line)?);
                }
                rest = &rest[end + 1..];
            }
            let length = unread.len() - rest.len();
            unread.drain(..length);
            Ok(())
        };
        let everything = ConnectionFilter::default();
        let listed = self.list_connections(&everything, ListForm::Json, lines).await?;
        listed.map_err(|error| {
            self.protocol(&format!(
                "/v1/connections: {error}; are agent and command of one version?"
            ))
        })
    }

    /// `GET /v1/connections`: the list of those that `filter` means, in one of its forms, handed on as it comes.
    /// What `take` fails with ends the list, and is returned.
    pub async fn list_connections(
        &self,
        filter: &ConnectionFilter,
        form: ListForm,
        mut take: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<io::Result<()>, ClientError> {
        let path = self.path_of_connections(filter)?;
        let mut answer = self.open(Method::GET, &path, form.name(), Bytes::new()).await?;
        while let Some(piece) = self.piece(&mut answer.response).await? {
            if let Err(error) = take(&piece) {
                return Ok(Err(error));
            }
        }
        Ok(Ok(()))
    }

    /// `DELETE /v1/connections`: removes the entries that `filter` means; returns how many those were.
    pub async fn flush_connections(&self, filter: &ConnectionFilter) -> Result<u64, ClientError> {
        let path = self.path_of_connections(filter)?;
        let body = self.request(Method::DELETE, &path, Bytes::new()).await?;
        let Flushed { removed } = self.read(&path, &body)?;
        Ok(removed)
    }

    fn path_of_connections(&self, filter: &ConnectionFilter) -> Result<String, ClientError> {
        let query = serde_urlencoded::to_string(filter).map_err(|error| self.protocol(&error))?;
        Ok(if query.is_empty() {
            "/v1/connections".to_owned()
        } else {
            format!("/v1/connections?{query}")
        })
    }

    /// `POST /v1/changes`: applies `changes` in their order, all or none.
    pub async fn change(&self, changes: Vec<Change>) -> Result<(), ClientError> {
        let check = false;
        self.post("/v1/changes", &Changes { changes, check }).await
    }

    /// `POST /v1/changes` with `check`: says what is wrong with `changes`, and makes none.
    pub async fn check(&self, changes: Vec<Change>) -> Result<(), ClientError> {
        let check = true;
        self.post("/v1/changes", &Changes { changes, check }).await
    }

    /// `GET /v1/configuration`: everything that is configured.
    pub async fn configuration(&self) -> Result<Configuration, ClientError> {
        self.get("/v1/configuration").await
    }

    /// `PUT /v1/configuration`: replaces everything that is configured, or says what that would change. `source` is
    /// where it comes from, for the history.
    pub async fn configure(
        &self,
        configuration: &Configuration,
        dry_run: bool,
        source: String,
    ) -> Result<Plan, ClientError> {
        let how = Application {
            dry_run,
            source: Some(source),
        };
        self.plan(Method::PUT, "/v1/configuration", &how, configuration)
            .await
    }

    /// `POST /v1/rollback`: goes back to the table of before the last `back` versions, or says what that would change.
    pub async fn rollback(&self, back: u32, dry_run: bool) -> Result<Plan, ClientError> {
        let how = Application {
            dry_run,
            source: None,
        };
        self.plan(Method::POST, "/v1/rollback", &how, &Rollback { back })
            .await
    }

    async fn plan<T: Serialize>(
        &self,
        method: Method,
        path: &str,
        how: &Application,
        body: &T,
    ) -> Result<Plan, ClientError> {
        let query = serde_urlencoded::to_string(how).map_err(|error| self.protocol(&error))?;
        let body = serde_json::to_vec(body).map_err(|error| self.protocol(&error))?;
        let answer = self
            .request(method, &format!("{path}?{query}"), body.into())
            .await?;
        self.read(path, &answer)
    }

    /// `GET /v1/history`: the versions that can be gone back to, the newest first.
    pub async fn history(&self) -> Result<Vec<Version>, ClientError> {
        self.get("/v1/history").await
    }

    /// `POST /v1/announce`: tells everybody where these virtual addresses are, or all that are answered for here.
    /// The answer is those that were told.
    pub async fn announce(&self, addresses: Vec<IpAddr>) -> Result<Vec<IpAddr>, ClientError> {
        let path = "/v1/announce";
        let body = serde_json::to_vec(&Announcement { addresses }).map_err(|error| self.protocol(&error))?;
        let answer = self.request(Method::POST, path, body.into()).await?;
        let Announcement { addresses } = self.read(path, &answer)?;
        Ok(addresses)
    }

    /// `POST /v1/unload`: detaches the program from every interface and ends the agent.
    pub async fn unload(&self) -> Result<(), ClientError> {
        self.post("/v1/unload", &serde_json::Map::new()).await
    }

    /// `GET /metrics`: the text that Prometheus reads.
    pub async fn metrics(&self) -> Result<String, ClientError> {
        const PATH: &str = "/metrics";
        let body = self.request(Method::GET, PATH, Bytes::new()).await?;
        String::from_utf8(body.into()).map_err(|error| self.protocol(&format!("{PATH}: {error}")))
    }

    /// `GET /openapi.json`: the description of the API itself.
    pub async fn openapi(&self) -> Result<serde_json::Value, ClientError> {
        self.get("/openapi.json").await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let body = self.request(Method::GET, path, Bytes::new()).await?;
        self.read(path, &body)
    }

    fn read<T: DeserializeOwned>(&self, path: &str, body: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(body).map_err(|error| {
            self.protocol(&format!("{path}: {error}; are agent and command of one version?"))
        })
    }

    /// The answer's body is an empty object and is not looked at: its status says it all.
    async fn post<T: Serialize>(&self, path: &str, body: &T) -> Result<(), ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| self.protocol(&error))?;
        self.request(Method::POST, path, body.into()).await?;
        Ok(())
    }

    /// The whole body of a good answer.
    async fn request(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
        let mut answer = self.open(method, path, ListForm::Json.name(), body).await?;
        let mut whole = Vec::new();
        while let Some(piece) = self.piece(&mut answer.response).await? {
            whole.extend_from_slice(&piece);
        }
        Ok(whole.into())
    }

    /// Asks, and comes back with a good answer whose body is still to be read.
    async fn open(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Bytes,
    ) -> Result<Answer, ClientError> {
        let mut request = Request::builder();
        if let Some(shown) = self.target.authorization() {
            request = request.header(AUTHORIZATION, shown);
        }
        let request = request
            .method(method)
            .uri(path)
            .header(HOST, "localhost")
            .header(ACCEPT, accept)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| self.protocol(&error))?;
        let mut answer = self.in_time(self.exchange(request)).await?;
        let status = answer.response.status();
        if status.is_success() {
            return Ok(answer);
        }
        let mut body = Vec::new();
        while let Some(piece) = self.piece(&mut answer.response).await? {
            body.extend_from_slice(&piece);
        }
        match serde_json::from_slice::<ApiError>(&body) {
            Ok(refusal) => Err(refusal.into()),
            Err(_) => Err(self.protocol(&format!("HTTP status {status}"))),
        }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Answer, ClientError> {
        let stream = (self.target.connect().await).map_err(|source| ClientError::Connect {
            target: self.target.clone(),
            source,
        })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.protocol(&error))?;
        // The connection's own fault shows in the request as well, and is reported from there.
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| self.protocol(&error))?;
        Ok(Answer {
            response,
            _connection: tasks,
        })
    }

    /// The next piece of an answer's body; nothing at its proper end.
    async fn piece(&self, response: &mut Response<Incoming>) -> Result<Option<Bytes>, ClientError> {
        let frame = async {
            response
                .frame()
                .await
                .transpose()
                .map_err(|error| self.protocol(&error))
        };
        let frame = self.in_time(frame).await?;
        // A frame that has no data has trailers, and the agent sends none.
        Ok(frame.map(|frame| frame.into_data().unwrap_or_default()))
    }

    async fn in_time<T>(
        &self,
        answer: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        time::timeout(ANSWER_TIMEOUT, answer).await.unwrap_or_else(|_| {
            Err(self.protocol(&format!(
                "none within {} s; see its log",
                ANSWER_TIMEOUT.as_secs()
            )))
        })
    }

    fn protocol(&self, reason: &impl ToString) -> ClientError {
        ClientError::Protocol {
            target: self.target.clone(),
            reason: reason.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        os::unix::net::UnixListener,
        path::Path,
        thread,
    };

    use super::*;
    use crate::api::types::ErrorCode;

    /// What a client makes of one raw HTTP answer.
    fn change_answered_by(answer: &'static str) -> Result<(), ClientError> {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("agent.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // The request is far smaller than this, and comes in one piece on a Unix socket.
            let read = stream.read(&mut [0; 4096]).unwrap();
            assert!(read > 0);
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let result = BlockingClient::new(socket).change(vec![Change::Clear]);
        server.join().unwrap();
        result
    }

    #[test]
    fn socket_is_option_then_variable_then_default() {
        let (option, variable) = (Some(PathBuf::from("/option")), Some(PathBuf::from("/variable")));
        assert_eq!(choose_socket(option, variable.clone()), Path::new("/option"));
        assert_eq!(choose_socket(None, variable), Path::new("/variable"));
        assert_eq!(
            choose_socket(None, Some(PathBuf::new())),
            Path::new(DEFAULT_SOCKET)
        );
        assert_eq!(choose_socket(None, None), Path::new(DEFAULT_SOCKET));
    }

    #[test]
    fn no_agent_is_one_line_that_names_the_socket() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("none.sock");
        let error = BlockingClient::new(socket.clone()).status().unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(socket.to_str().unwrap()) && text.contains("lvs-xdp agent"),
            "{text}"
        );
        assert!(!text.contains('\n'), "{text}");
    }

    #[test]
    fn success_needs_no_body() {
        change_answered_by("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").unwrap();
    }

    #[test]
    fn refusal_carries_code_and_message() {
        let error = change_answered_by(
            "HTTP/1.1 409 Conflict\r\ncontent-length: 44\r\n\r\n{\"code\":\"service-exists\",\"message\":\"it is\"}\n\n",
        )
        .unwrap_err();
        let ClientError::Refused(refusal) = error else {
            panic!("{error:?}")
        };
        assert_eq!(refusal, ApiError::new(ErrorCode::ServiceExists, "it is"));
    }

    #[test]
    fn answers_that_are_none_are_protocol_errors() {
        for answer in [
            "HTTP/1.1 500 Oops\r\ncontent-length: 4\r\n\r\nwhat",
            "SSH-2.0-OpenSSH\r\n",
            "",
        ] {
            let error = change_answered_by(answer).unwrap_err();
            assert!(
                matches!(error, ClientError::Protocol { .. }),
                "{answer:?}: {error:?}"
            );
            assert!(!error.to_string().contains('\n'));
        }
    }
}
