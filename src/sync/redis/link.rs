//! One connection to Redis: opened, and asked, always with a deadline.
//!
//! All that a node says goes over this one connection, pipelined; what Redis says by itself (Pub/Sub messages) comes in
//! over it too. A call that misses its deadline may still have happened there, so every command is one that may be
//! repeated.

use std::fs;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionInfo, FromRedisValue, IntoConnectionInfo, Pipeline, ProtocolVersion,
    PushInfo, TlsCertificates, Value,
};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::errors::{Reader, Refused};
use super::scripts::Scripts;
use crate::sync::state::{Failure, FailureClass};

/// How long one call may take. A server that is stalled is noticed by this.
const DEADLINE: Duration = Duration::from_secs(5);
/// How often a server may forget the scripts in the midst of one pipeline.
const RELOADS: usize = 3;
/// The parameter of a URL that names a file with the authorities to trust instead of the system's.
const ROOT_CERTIFICATES: &str = "sslrootcert";

/// What the server made of one command among many.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// It was carried out.
    Value(Value),
    /// It was refused for its own content.
    Refused {
        /// The first word of the error.
        code: String,
        /// Its text.
        reason: String,
    },
}

/// A connection and the scripts that its server knows.
#[derive(Clone)]
pub struct Link {
    connection: MultiplexedConnection,
    reader: Reader,
}

impl Link {
    /// Connects, and loads the scripts. `on_push` is given what Redis says by itself and must not block.
    pub async fn connect(
        url: &SecretString,
        scripts: &Scripts,
        on_push: impl Fn(PushInfo) + Send + Sync + 'static,
    ) -> Result<Self, Failure> {
        let (client, reader) = client(url)?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(DEADLINE))
            .set_response_timeout(None)
            .set_push_sender(move |info| {
                on_push(info);
                Ok::<(), ()>(())
            });
        let connecting = client.get_multiplexed_async_connection_with_config(&config);
        let connection = tokio::time::timeout(DEADLINE, connecting)
            .await
            .map_err(|_| silence())?
            .map_err(|error| reader.failure(&error))?;
        let link = Self { connection, reader };
        link.load(scripts).await?;
        Ok(link)
    }

    async fn load(&self, scripts: &Scripts) -> Result<(), Failure> {
        self.values(&scripts.load()).await?.into_iter().try_for_each(|value| self.checked(value).map(drop))
    }

    /// Sends one command.
    pub async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Failure> {
        let mut connection = self.connection.clone();
        tokio::time::timeout(DEADLINE, command.query_async(&mut connection))
            .await
            .map_err(|_| silence())?
            .map_err(|error| self.reader.failure(&error))
    }

    /// Sends several commands at once; answers and errors in their order.
    pub async fn values(&self, pipeline: &Pipeline) -> Result<Vec<Value>, Failure> {
        if pipeline.is_empty() {
            return Ok(Vec::new());
        }
        let mut connection = self.connection.clone();
        tokio::time::timeout(DEADLINE, connection.send_packed_commands(pipeline, 0, pipeline.len()))
            .await
            .map_err(|_| silence())?
            .map_err(|error| self.reader.failure(&error))
    }

    /// Sends several commands at once of which none may be refused.
    pub async fn all<T: FromRedisValue>(&self, pipeline: &Pipeline) -> Result<Vec<T>, Failure> {
        self.values(pipeline).await?.into_iter().map(|value| self.read(value)).collect()
    }

    /// Runs scripts. What a server has forgotten is loaded again.
    pub async fn run(&self, scripts: &Scripts, pipeline: &Pipeline) -> Result<Vec<Answer>, Failure> {
        let mut answers: Vec<Option<Answer>> = vec![None; pipeline.len()];
        let mut open: Vec<usize> = (0..pipeline.len()).collect();
        let mut values = self.values(pipeline).await?;
        for _ in 0..RELOADS {
            let mut forgotten = Vec::new();
            for (index, value) in open.into_iter().zip(values) {
                answers[index] = match value {
                    Value::ServerError(error) => match self.reader.refused(&error) {
                        Refused::NoScript => {
                            forgotten.push(index);
                            None
                        }
                        Refused::Entry { code, reason } => Some(Answer::Refused { code, reason }),
                        Refused::Sink(failure) => return Err(failure),
                    },
                    value => Some(Answer::Value(value)),
                };
            }
            if forgotten.is_empty() {
                return Ok(answers.into_iter().map(|answer| answer.expect("each was answered")).collect());
            }
            self.load(scripts).await?;
            let commands: Vec<&Cmd> = pipeline.cmd_iter().collect();
            let mut again = Pipeline::with_capacity(forgotten.len());
            for index in &forgotten {
                again.add_command(commands[*index].clone());
            }
            values = self.values(&again).await?;
            open = forgotten;
        }
        Err(Failure::new(FailureClass::Busy, "the server forgets the scripts as fast as they are loaded"))
    }

    /// Listens to channels, or no more.
    pub async fn listen(&self, channels: &[String], listen: bool) -> Result<(), Failure> {
        let mut connection = self.connection.clone();
        let call = async {
            if listen { connection.subscribe(channels).await } else { connection.unsubscribe(channels).await }
        };
        tokio::time::timeout(DEADLINE, call).await.map_err(|_| silence())?.map_err(|error| self.reader.failure(&error))
    }

    /// Reads an answer as what it must be.
    pub fn read<T: FromRedisValue>(&self, value: Value) -> Result<T, Failure> {
        let value = self.checked(value)?;
        T::from_redis_value(value).map_err(|error| self.reader.failure(&error.into()))
    }

    fn checked(&self, value: Value) -> Result<Value, Failure> {
        match value {
            Value::ServerError(error) => Err(match self.reader.refused(&error) {
                Refused::Sink(failure) => failure,
                Refused::Entry { reason, .. } => Failure::new(FailureClass::Misconfigured, reason),
                Refused::NoScript => Failure::new(FailureClass::Busy, "the server forgot the scripts"),
            }),
            value => Ok(value),
        }
    }
}

fn silence() -> Failure {
    Failure::new(FailureClass::Unreachable, format!("no answer within {} seconds", DEADLINE.as_secs()))
}

/// No text of the URL goes into an error: what cannot be parsed cannot be redacted either.
fn client(url: &SecretString) -> Result<(Client, Reader), Failure> {
    let wrong = |what: &str| Failure::new(FailureClass::Misconfigured, format!("the Redis URL {what}"));
    let mut url = Url::parse(url.expose_secret()).map_err(|_| wrong("cannot be read"))?;
    if url.fragment().is_some() {
        return Err(wrong("has a `#` part; certificates are always verified"));
    }
    let root_certificates =
        url.query_pairs().find(|(key, _)| key == ROOT_CERTIFICATES).map(|(_, path)| path.into_owned());
    url.set_query(None);
    let info: ConnectionInfo =
        url.as_str().into_connection_info().map_err(|_| wrong("names no host, or a database that is no number"))?;
    let password = info.redis_settings().password().map(str::to_owned);
    let reader = Reader::new(password.into_iter().chain(url.password().map(str::to_owned)));
    let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    let info = info.set_redis_settings(settings);
    let client = match root_certificates {
        None => Client::open(info),
        Some(path) => {
            let pem =
                fs::read(&path).map_err(|error| wrong(&format!("names {path} for {ROOT_CERTIFICATES}: {error}")))?;
            Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert: Some(pem) })
        }
    };
    Ok((client.map_err(|error| reader.failure(&error))?, reader))
}
