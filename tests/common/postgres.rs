//! A real PostgreSQL in a directory of its own, on a port that is free: started, paused, crashed, stopped, started
//! again; and pgbouncer in front of it.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::authority::Certified;
use super::sidecar::wait_for;

/// The password of every role that has one, so that tests can look for it where it must not be.
pub const PASSWORD: &str = "s3cret-of-the-tests";

const HOW_TO_INSTALL: &str = "sh tests/install-servers.sh installs it";

/// The server; stopped and deleted when dropped.
pub struct Postgres {
    directory: TempDir,
    port: u16,
    server: Option<Child>,
    settings: Vec<String>,
}

impl Postgres {
    /// A new, empty cluster that is running. It does not wait for the disk, which only matters where the whole machine
    /// crashes.
    #[track_caller]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with settings such as `max_connections=300`.
    #[track_caller]
    pub fn start_with(settings: &[&str]) -> Self {
        let mut server = Self::without_cluster(settings.iter().map(|setting| (*setting).to_owned()).collect());
        let initdb = as_server_user(&program("initdb"))
            .args(["--no-sync", "--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "-D"])
            .arg(server.data())
            .stdin(Stdio::null())
            .output()
            .expect("initdb can be started");
        assert!(initdb.status.success(), "initdb: {}", String::from_utf8_lossy(&initdb.stderr));
        let access = "local all all trust\n\
                      host all postgres 127.0.0.1/32 trust\n\
                      host replication postgres 127.0.0.1/32 trust\n\
                      host all all 127.0.0.1/32 scram-sha-256\n";
        fs::write(server.data().join("pg_hba.conf"), access).expect("it is our own directory");
        server.resume();
        server
    }

    fn without_cluster(settings: Vec<String>) -> Self {
        Self { directory: server_directory(), port: free_port(), server: None, settings }
    }

    /// A running standby of this server, which streams through `port`: that of the server itself, or of a proxy before it.
    #[track_caller]
    pub fn standby_through(&self, port: u16) -> Self {
        let mut standby = Self::without_cluster(self.settings.clone());
        base_backup(port, &standby.data(), &["--write-recovery-conf"]);
        standby.resume();
        standby
    }

    /// Makes a standby a primary.
    #[track_caller]
    pub fn promote(&self) {
        assert_eq!(self.sql("postgres", "SELECT pg_promote(true)"), "t");
    }

    /// Takes a base backup of the running server; where it lies.
    #[track_caller]
    pub fn base_backup(&self) -> PathBuf {
        let backup = self.directory.path().join("base-backup");
        base_backup(self.port, &backup, &[]);
        backup
    }

    /// Copies the files of the stopped server; where the copy lies.
    #[track_caller]
    pub fn cold_copy(&self) -> PathBuf {
        assert!(self.server.is_none(), "it runs");
        let copy = self.directory.path().join("cold-copy");
        run(as_server_user(Path::new("cp")).arg("-a").arg(self.data()).arg(&copy));
        copy
    }

    /// Puts a copy of its files in the place of those of the stopped server.
    #[track_caller]
    pub fn put_back(&self, copy: &Path) {
        assert!(self.server.is_none(), "it runs");
        fs::remove_dir_all(self.data()).expect("it is our own directory");
        run(as_server_user(Path::new("cp")).arg("-a").arg(copy).arg(self.data()));
    }

    /// Dumps a database as SQL; where the dump lies.
    #[track_caller]
    pub fn dump(&self, database: &str) -> PathBuf {
        let dump = self.directory.path().join("dump.sql");
        run(as_server_user(&program("pg_dump")).arg("--dbname").arg(self.url(database)).arg("--file").arg(&dump));
        dump
    }

    /// Makes a database of a dump.
    #[track_caller]
    pub fn restore(&self, dump: &Path, database: &str) {
        let url = self.database(database);
        let mut psql = as_server_user(&program("psql"));
        run(psql.args(["--no-psqlrc", "-q", "-v", "ON_ERROR_STOP=1", "-d", &url, "-f"]).arg(dump));
    }

    /// Where its cluster lies.
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Its directory, which the server's own user can write to.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where the superuser finds a database, without a password.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Where a role that [`role`](Self::role) made finds a database.
    pub fn url_of(&self, role: &str, database: &str) -> String {
        format!("postgres://{role}:{PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }

    /// Makes a database, and gives its URL.
    pub fn database(&self, name: &str) -> String {
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        self.url(name)
    }

    /// Makes a role that may log in, and nothing else.
    pub fn role(&self, name: &str) {
        self.sql("postgres", &format!("CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'"));
    }

    /// Has it speak TLS with this certificate from here on, with those who want it.
    #[track_caller]
    pub fn show_certificate(&self, certified: &Certified) {
        for (name, text) in [("server.crt", &certified.certificate), ("server.key", &certified.key)] {
            let file = self.data().join(name);
            fs::write(&file, text).expect("it is our own directory");
            if let Some((user, group)) = server_user() {
                std::os::unix::fs::chown(&file, Some(user), Some(group)).expect("root may");
            }
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("it is our own directory");
        }
        self.sql("postgres", "ALTER SYSTEM SET ssl = on");
        self.sql("postgres", "SELECT pg_reload_conf()");
    }

    /// Starts the server and waits until it answers.
    #[track_caller]
    pub fn resume(&mut self) {
        self.launch();
        wait_for("PostgreSQL", || self.try_sql("postgres", "SELECT 1").ok());
    }

    /// Starts the server without waiting.
    pub fn launch(&mut self) {
        assert!(self.server.is_none(), "it runs");
        let log = fs::File::options().create(true).append(true).open(self.directory.path().join("log"));
        let mut command = as_server_user(&program("postgres"));
        command.arg("-D").arg(self.data());
        for setting in [
            "fsync=off",
            "shared_buffers=16MB",
            "max_connections=50",
            "listen_addresses=127.0.0.1",
            "logging_collector=off",
        ] {
            command.args(["-c", setting]);
        }
        command.args(["-c", &format!("port={}", self.port)]);
        command.args(["-c", &format!("unix_socket_directories={}", self.directory.path().display())]);
        for setting in &self.settings {
            command.args(["-c", setting]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.expect("it is our own directory"));
        self.server = Some(command.spawn().expect("postgres can be started"));
    }

    /// Ends it in order: sessions are cut, what was committed is written.
    pub fn stop(&mut self) {
        self.end(Signal::INT);
    }

    /// Ends it at once, as a crash does; the next start recovers.
    pub fn crash(&mut self) {
        self.end(Signal::QUIT);
    }

    /// `restart -m immediate`.
    #[track_caller]
    pub fn crash_and_restart(&mut self) {
        self.crash();
        self.resume();
    }

    /// Holds the server and all its sessions where they are: connections are taken by the kernel, and nobody answers.
    pub fn freeze(&self) {
        let postmaster = self.pid();
        signal(postmaster, Signal::STOP);
        for child in children(postmaster) {
            signal(child, Signal::STOP);
        }
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        let postmaster = self.pid();
        for child in children(postmaster) {
            signal(child, Signal::CONT);
        }
        signal(postmaster, Signal::CONT);
    }

    /// Runs SQL as the superuser; one line a row, columns separated by `|`.
    #[track_caller]
    pub fn sql(&self, database: &str, sql: &str) -> String {
        match self.try_sql(database, sql) {
            Ok(output) => output,
            Err(error) => panic!("{sql}: {error}"),
        }
    }

    /// The same where it may fail.
    ///
    /// # Errors
    /// What `psql` says on stderr.
    pub fn try_sql(&self, database: &str, sql: &str) -> Result<String, String> {
        psql(&self.url(database), sql)
    }

    /// The server's log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    fn pid(&self) -> Pid {
        Pid::from_child(self.server.as_ref().expect("it runs"))
    }

    fn end(&mut self, with: Signal) {
        let postmaster = self.pid();
        signal(postmaster, with);
        let mut child = self.server.take().expect("it runs");
        wait_for("the end of PostgreSQL", || child.try_wait().expect("it is our own child"));
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if self.server.is_some() {
            self.thaw();
            self.end(Signal::QUIT);
        }
    }
}

#[track_caller]
fn base_backup(port: u16, to: &Path, more: &[&str]) {
    let mut command = as_server_user(&program("pg_basebackup"));
    command.args(["--host=127.0.0.1", "--username=postgres", "--checkpoint=fast", "--no-sync", "--wal-method=stream"]);
    run(command.arg(format!("--port={port}")).args(more).arg("--pgdata").arg(to));
}

#[track_caller]
fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().expect("it can be started");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The longest text that goes to a program as an argument.
const LONGEST_ARGUMENT: usize = 64 * 1024;

/// Runs SQL at a URL; one line a row, columns separated by `|`.
///
/// # Errors
/// What `psql` says on stderr.
pub fn psql(url: &str, sql: &str) -> Result<String, String> {
    let mut file = tempfile::NamedTempFile::new().expect("there is room for a temporary file");
    let mut command = Command::new(program("psql"));
    command.args(["--no-psqlrc", "-qAt", "-v", "ON_ERROR_STOP=1", "-d", url]);
    if sql.len() < LONGEST_ARGUMENT {
        command.args(["-c", sql]);
    } else {
        file.write_all(sql.as_bytes()).expect("there is room for it");
        command.arg("-f").arg(file.path());
    }
    let output = command.env("PGCONNECT_TIMEOUT", "10").stdin(Stdio::null()).output().expect("psql can be started");
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// pgbouncer in front of a server, in transaction mode: every transaction may run on another of its connections.
pub struct Bouncer {
    child: Child,
    directory: TempDir,
    port: u16,
}

impl Bouncer {
    #[track_caller]
    pub fn start(before: &Postgres) -> Self {
        let (directory, port) = (server_directory(), free_port());
        let file = directory.path().join("pgbouncer.ini");
        let users = directory.path().join("users");
        let mut text = String::new();
        write!(
            text,
            "[databases]\n* = host=127.0.0.1 port={}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir = {}\n\
             auth_type = trust\nauth_file = {}\npool_mode = transaction\ndefault_pool_size = 3\nmax_client_conn = 300\n",
            before.port(),
            directory.path().display(),
            users.display()
        )
        .expect("writing to a string");
        fs::write(&file, text).expect("it is our own directory");
        fs::write(&users, "\"postgres\" \"\"\n").expect("it is our own directory");
        let log = fs::File::create(directory.path().join("log")).expect("it is our own directory");
        let child = as_server_user(&program("pgbouncer"))
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("pgbouncer can be started");
        let bouncer = Self { child, directory, port };
        wait_for("pgbouncer", || psql(&bouncer.url("postgres"), "SELECT 1").ok());
        bouncer
    }

    /// Where the superuser finds a database through it.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// What it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Bouncer {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A directory that the servers may write to, whose path is short enough for their sockets.
fn server_directory() -> TempDir {
    let directory = tempfile::Builder::new().prefix("tp-pg-").tempdir_in("/tmp").expect("there is room in /tmp");
    if let Some((user, group)) = server_user() {
        std::os::unix::fs::chown(directory.path(), Some(user), Some(group)).expect("root may");
    }
    // Others may pass through: the tests themselves may run as another user.
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("it is our own directory");
    directory
}

/// A port that nobody listens on just now.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
    listener.local_addr().expect("it is bound").port()
}

/// Both servers refuse to run as root; Debian's packages bring a user for them.
fn as_server_user(program: &Path) -> Command {
    let mut command = Command::new(program);
    if let Some((user, group)) = server_user() {
        command.uid(user).gid(group).current_dir("/");
    }
    command
}

fn server_user() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").expect("users are listed");
    let line = users.lines().find(|line| line.starts_with("postgres:"));
    let line = line.unwrap_or_else(|| panic!("there is no user `postgres`; {HOW_TO_INSTALL}"));
    let mut ids = line.split(':').skip(2).map(|id| id.parse().expect("ids are numbers"));
    ids.next().zip(ids.next())
}

/// Finds a server program: where Debian keeps PostgreSQL's, the newest first, then where all programs are.
#[track_caller]
fn program(name: &str) -> PathBuf {
    let mut places = Vec::new();
    if let Ok(versions) = fs::read_dir("/usr/lib/postgresql") {
        let mut versions: Vec<_> = versions.flatten().map(|version| version.path()).collect();
        versions.sort_by_key(|path| {
            std::cmp::Reverse(path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok()))
        });
        places.extend(versions.into_iter().map(|version| version.join("bin")));
    }
    places.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    places.extend(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from));
    let found = places.into_iter().map(|place| place.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("`{name}` is needed and missing; {HOW_TO_INSTALL}"))
}

fn signal(process: Pid, signal: Signal) {
    // A session may have ended meanwhile.
    kill_process(process, signal).ok();
}

/// The processes whose parent is `parent`.
fn children(parent: Pid) -> Vec<Pid> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    processes
        .flatten()
        .filter_map(|process| {
            let id: i32 = process.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(process.path().join("stat")).ok()?;
            // The name in brackets may hold anything; state and parent come behind it.
            let parent_id: i32 = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
            if parent_id == parent.as_raw_nonzero().get() { Pid::from_raw(id) } else { None }
        })
        .collect()
}
