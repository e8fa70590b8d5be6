//! What a mix of flags, environment and file means, as tables of rows.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use secrecy::ExposeSecret;

use super::super::Values;
use super::*;

/// One process: what its flags, environment and configuration file say.
#[derive(Default)]
struct Process {
    flags: Values,
    variables: BTreeMap<String, String>,
    file: Option<(tempfile::TempDir, PathBuf)>,
}

impl Process {
    fn new() -> Self {
        let mut process = Self::default();
        process.variables.insert("HOME".to_owned(), "/home/op".to_owned());
        process
    }

    fn flag(mut self, setting: Setting, value: &str) -> Self {
        self.flags.set(setting, Some(value));
        self
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    fn file(self, text: &str) -> Self {
        self.file_with_mode(text, 0o600)
    }

    fn file_with_mode(mut self, text: &str, mode: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tradepost.toml");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        self.file = Some((directory, path));
        self
    }

    fn resolve(self) -> Result<Resolved, String> {
        let variable = |name: &str| self.variables.get(name).map(OsString::from);
        let config = self.file.as_ref().map(|(_, path)| path.as_path());
        Layers::read(self.flags, config, &variable)
            .and_then(|layers| ServeSettings::resolve(&layers, &variable))
            .map_err(|error| error.to_string())
    }

    /// `VALUE (SOURCE)` of one setting, with any file as `file F`.
    fn row(self, setting: Setting) -> String {
        let resolved = self.resolve().unwrap();
        let row = resolved.rows.iter().find(|row| row.setting == setting).unwrap();
        let source = match &row.source {
            Source::File(_) => "file F".to_owned(),
            other => other.to_string(),
        };
        format!("{} ({source})", row.value)
    }

    fn refusal(self) -> String {
        self.resolve().expect_err("must be refused")
    }
}

#[test]
fn the_first_of_flag_environment_file_and_default_wins() {
    let rows = [
        // setting, flag, variable, file, default
        (Setting::Listen, "127.0.0.1:1", "127.0.0.1:2", "listen = '127.0.0.1:3'", r#""127.0.0.1:7700""#),
        (Setting::MetricsListen, "127.0.0.1:1", "127.0.0.1:2", "metrics-listen = '127.0.0.1:3'", r#""127.0.0.1:8000""#),
        (Setting::AgentTtl, "1", "2", "agent-ttl = 3", "3600"),
        (Setting::StaleFor, "1s", "2s", "stale-for = '3s'", "86400"),
        (Setting::LegacyWriters, "true", "true", "legacy-writers = true", "false"),
        (Setting::LogLevel, "error", "warn", "log-level = 'debug'", r#""info""#),
        (Setting::LogFormat, "json", "json", "log-format = 'json'", r#""text""#),
        (Setting::AllowedHost, "a", "b,c", "allowed-host = ['d', 'e']", "[]"),
        (Setting::DataDir, "/a", "/b", "data-dir = '/c'", r#""/home/op/.local/share/tradepost""#),
        (Setting::Socket, "/a", "/b", "socket = '/c'", r#""/home/op/.local/share/tradepost/tradepost.sock""#),
        (Setting::RedisUrl, "redis://a", "redis://b", "redis-url = 'redis://c'", "null"),
        (Setting::PostgresUrl, "postgres://a", "postgres://b", "postgres-url = 'postgresql://c'", "null"),
    ];
    for (setting, flag, variable, file, default) in rows {
        let name = setting.variable();
        let all = Process::new().flag(setting, flag).variable(&name, variable).file(file);
        assert!(all.row(setting).ends_with("(flag)"), "{setting}");
        let without_flag = Process::new().variable(&name, variable).file(file);
        assert!(without_flag.row(setting).ends_with("(environment)"), "{setting}");
        let emptied = Process::new().variable(&name, "").file(file);
        assert!(emptied.row(setting).ends_with("(file F)"), "{setting}");
        assert_eq!(Process::new().row(setting), format!("{default} (default)"));
    }
    let hosts = Process::new().file("allowed-host = ['d', 'e']").row(Setting::AllowedHost);
    assert_eq!(hosts, r#"["d","e"] (file F)"#);
}

#[test]
fn there_is_one_row_for_each_setting() {
    for process in [
        Process::new(),
        Process::new().flag(Setting::InMemory, "true"),
        Process::new().flag(Setting::DataDir, "/d").variable("TRADEPOST_IN_MEMORY", "1"),
        Process::new().flag(Setting::RedisUrl, "redis://h"),
    ] {
        let rows = process.resolve().unwrap().rows;
        assert_eq!(rows.iter().map(|row| row.setting).collect::<Vec<_>>(), Setting::ALL);
    }
}

#[test]
fn data_lies_where_the_highest_source_says() {
    let directory = |path: &str| StoreLocation::Directory(PathBuf::from(path));
    let rows = [
        (Process::new(), directory("/home/op/.local/share/tradepost")),
        (Process::new().variable("XDG_DATA_HOME", "/data"), directory("/data/tradepost")),
        (Process::new().variable("XDG_DATA_HOME", "relative"), directory("/home/op/.local/share/tradepost")),
        (Process::new().flag(Setting::InMemory, "true"), StoreLocation::Memory),
        (Process::new().flag(Setting::InMemory, "true").variable("TRADEPOST_DATA_DIR", "/d"), StoreLocation::Memory),
        (Process::new().flag(Setting::DataDir, "/d").variable("TRADEPOST_IN_MEMORY", "yes"), directory("/d")),
        (Process::new().variable("TRADEPOST_IN_MEMORY", "no").file("data-dir = '/d'"), directory("/d")),
        (
            Process::new().variable("TRADEPOST_IN_MEMORY", "no").file("in-memory = true\nlisten = '[::1]:1'"),
            directory("/home/op/.local/share/tradepost"),
        ),
    ];
    for (process, store) in rows {
        assert_eq!(process.resolve().unwrap().settings.store, store);
    }
}

#[test]
fn a_socket_comes_with_a_data_directory_or_on_request() {
    let socket = |process: Process| process.resolve().unwrap().settings.socket;
    assert_eq!(socket(Process::new().flag(Setting::DataDir, "/d")), Some(PathBuf::from("/d/tradepost.sock")));
    assert_eq!(socket(Process::new().flag(Setting::DataDir, "/d").flag(Setting::Socket, "none")), None);
    assert_eq!(socket(Process::new().flag(Setting::InMemory, "true")), None);
    let asked_for = Process::new().flag(Setting::InMemory, "true").flag(Setting::Socket, "/run/t.sock");
    assert_eq!(socket(asked_for), Some(PathBuf::from("/run/t.sock")));
}

#[test]
fn refusals_name_the_culprit_as_it_was_given() {
    let long = format!("/{}", "d".repeat(120));
    let rows = [
        (Process::new().flag(Setting::Listen, "7700"), "--listen: must be an address"),
        (Process::new().variable("TRADEPOST_AGENT_TTL", "0"), "TRADEPOST_AGENT_TTL: must be 1 to 2592000 seconds"),
        (Process::new().file("agent-ttl = 1.5"), "`agent-ttl` in "),
        (Process::new().file("agent-ttl = 'soon'"), "must be a whole number of seconds"),
        (Process::new().file("colour = 'red'"), "has the unknown key \"colour\""),
        (Process::new().file("data_dir = '/d'"), "it is written `data-dir`"),
        (Process::new().file("[serve]\nlisten = '127.0.0.1:1'"), "has the unknown key \"serve\""),
        (Process::new().file("listen = '127.0.0.1:1'\nlisten = '"), "is not TOML"),
        (Process::new().variable("TRADEPOST_CONFIG", "/nowhere/t.toml"), "/nowhere/t.toml: cannot be read"),
        (Process::new().flag(Setting::LogFormat, "xml"), "--log-format: must be one of text, json"),
        (Process::new().flag(Setting::Listen, "0.0.0.0:7700"), "--listen: 0.0.0.0:7700 can be reached"),
        (Process::new().flag(Setting::Listen, "[::ffff:10.0.0.1]:1"), "can be reached from other machines"),
        (Process::new().variable("TRADEPOST_METRICS_LISTEN", "[::]:8000"), "TRADEPOST_METRICS_LISTEN: [::]:8000 can"),
        (Process::new().flag(Setting::MetricsListen, "127.0.0.1:7700"), "where the API listens already"),
        (Process::new().flag(Setting::Socket, &long), "at most about 100 bytes"),
        (Process::new().flag(Setting::DataDir, &long), "--socket: cannot be "),
        (Process::new().flag(Setting::DataDir, ""), "--data-dir: must not be empty"),
        (Process::new().variable("HOME", ""), "--data-dir: is needed"),
        (Process::new().file("in-memory = true\ndata-dir = '/d'"), "together with `in-memory`"),
        (Process::new().flag(Setting::TokenFile, "/nowhere/token"), "--token-file: /nowhere/token: cannot be read"),
        (Process::new().flag(Setting::RedisUrl, "http://h"), "--redis-url: must be a URL that begins with redis://"),
        (Process::new().file("redis-url = 'redis://a'\nredis-url-file = '/f'"), "together with `redis-url`"),
        (Process::new().flag(Setting::AllowedHost, "http://a"), "--allowed-host: must be host names"),
    ];
    for (process, words) in rows {
        let refusal = process.refusal();
        assert!(refusal.contains(words), "{refusal:?} should contain {words:?}");
    }
}

#[test]
fn addresses_beyond_loopback_are_fine_with_a_token() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    std::fs::write(&file, "t0ken\n").unwrap();
    std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    let resolved = Process::new()
        .flag(Setting::Listen, "0.0.0.0:7700")
        .flag(Setting::MetricsListen, "none")
        .variable("TRADEPOST_TOKEN_FILE", file.to_str().unwrap())
        .resolve()
        .unwrap();
    assert_eq!(resolved.settings.token.as_ref().unwrap().secret.expose_secret(), "t0ken");
    assert_eq!(resolved.settings.metrics_listen, None);
    assert!(!format!("{resolved:?}").contains("t0ken"));
}

#[test]
fn a_password_comes_from_the_environment_or_a_private_file_but_never_from_a_flag() {
    for (setting, url) in [
        (Setting::RedisUrl, "redis://:s3cret@h"),
        (Setting::PostgresUrl, "postgres://u:s3cret@h/db"),
        (Setting::PostgresUrl, "postgres://h/db?user=u&password=s3cret"),
    ] {
        let refusal = Process::new().flag(setting, url).refusal();
        assert!(refusal.contains("holds a password") && !refusal.contains("s3cret"), "{refusal}");

        let toml = format!("{setting} = '{url}'");
        let refusal = Process::new().file_with_mode(&toml, 0o644).refusal();
        assert!(refusal.contains("chmod 600") && !refusal.contains("s3cret"), "{refusal}");
        // Even where the environment outranks it: the file still shows the password to everybody.
        let outranked = Process::new().variable(&setting.variable(), "redis://h").file_with_mode(&toml, 0o640);
        assert!(outranked.refusal().contains("chmod 600"));

        for process in [Process::new().variable(&setting.variable(), url), Process::new().file(&toml)] {
            let resolved = process.resolve().unwrap();
            assert!(resolved.settings.replication.is_configured());
            let shown = format!("{resolved:?}");
            assert!(shown.contains("***") && !shown.contains("s3cret"), "{shown}");
        }
    }
    let refusal = Process::new().file("redis-url = 'redis://:s3cret@h\n").refusal();
    assert!(refusal.contains("is not TOML") && refusal.contains("line 1") && !refusal.contains("s3cret"), "{refusal}");
}

#[test]
fn a_url_file_must_be_private_once_it_holds_a_password() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("redis");
    let process = |text: &str, mode: u32| {
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        Process::new().flag(Setting::RedisUrlFile, file.to_str().unwrap())
    };
    let url = |process: Process| process.resolve().unwrap().settings.replication.redis.unwrap();
    let private = url(process("rediss://u:s3cret@h/0\n", 0o600));
    assert_eq!(private.secret().expose_secret(), "rediss://u:s3cret@h/0");
    assert_eq!((private.to_string().as_str(), private.file()), ("rediss://u:***@h/0", Some(file.as_path())));
    assert_eq!(url(process("redis://h", 0o644)).to_string(), "redis://h");
    let refusal = process("rediss://u:s3cret@h/0\n", 0o644).refusal();
    assert!(refusal.starts_with("--redis-url-file: ") && refusal.contains("chmod 600"), "{refusal}");
    assert!(!refusal.contains("s3cret"));

    let outranked = process("redis://from-file", 0o600).variable("TRADEPOST_REDIS_URL", "redis://from-environment");
    assert_eq!(url(outranked).to_string(), "redis://from-file");
}
