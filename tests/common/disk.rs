//! A small disk of its own for a sidecar, which can be filled, made read-only, and made to fail.
//!
//! It is a tmpfs in a mount namespace of its own. That is in a user namespace of its own, so that nobody has to be root.
//! Both last as long as the one process that keeps them.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::sidecar::{Setup, Sidecar, tradepost_by};
use super::trials::Trials;

/// One disk; gone when it is dropped.
pub struct Disk {
    keeper: Child,
    directory: TempDir,
    /// Each disk is made for one fault.
    _trials: Trials,
}

impl Disk {
    pub fn of_mib(mib: u32) -> Self {
        let trials = Trials::of("disk", None);
        trials.ran(1);
        let directory = tempfile::tempdir().expect("there is room for a temporary directory");
        let mut keeper = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c"])
            .arg(r#"mount -t tmpfs -o "size=$1m,mode=700" none "$2" && echo mounted && exec cat"#)
            .args(["sh", &mib.to_string()])
            .arg(directory.path())
            // Closed when the disk is dropped, and by the kernel when the test dies.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare is there: it is one of util-linux");
        let mut said = String::new();
        BufReader::new(keeper.stdout.as_mut().expect("it is piped")).read_line(&mut said).expect("it can be read");
        assert_eq!(
            said, "mounted\n",
            "this test mounts a small disk in namespaces of its own, which is not allowed here: run it as root, or allow \
             user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone)"
        );
        Self { keeper, directory, _trials: trials }
    }

    /// What runs a program where this disk is mounted, in the program's own process.
    fn launcher(&self) -> Vec<String> {
        let keeper = self.keeper.id().to_string();
        ["nsenter", "--target", &keeper, "--user", "--mount", "--preserve-credentials", "--"].map(str::to_owned).into()
    }

    fn command(&self, program: &str) -> Command {
        let launcher = self.launcher();
        let mut command = Command::new(&launcher[0]);
        command.args(&launcher[1..]).arg(program).stdin(Stdio::null());
        command
    }

    #[track_caller]
    fn mount_again(&self, how: &str) -> Output {
        self.command("mount").args(["-o", how]).arg(self.directory.path()).output().expect("mount is there")
    }

    /// The data directory of a sidecar on it.
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// A sidecar on it.
    pub fn setup(&self) -> Setup {
        Setup::in_directory(self.data()).launched_by(self.launcher())
    }

    /// Where the test finds what lies there under `path`.
    pub fn seen(&self, path: &Path) -> PathBuf {
        Path::new(&format!("/proc/{}/root", self.keeper.id())).join(path.strip_prefix("/").expect("it is absolute"))
    }

    /// Takes all room that is left.
    pub fn fill(&self) {
        let filler = self.seen(&self.directory.path().join("filler"));
        let mut zeros = std::io::repeat(0);
        let full = std::fs::File::create(filler).and_then(|mut file| std::io::copy(&mut zeros, &mut file));
        assert_eq!(full.expect_err("it is small").kind(), std::io::ErrorKind::StorageFull);
    }

    /// Gives back what filling took.
    pub fn make_room(&self) {
        std::fs::remove_file(self.seen(&self.directory.path().join("filler"))).expect("it was filled");
    }

    /// Has nobody write to it.
    pub fn make_read_only(&self) {
        let output = self.mount_again("remount,ro");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Takes writes again.
    pub fn make_writable(&self) {
        let output = self.mount_again("remount,rw");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Lets system calls of a sidecar fail: which, how and when in the words of `strace -e inject=`.
    pub fn inject(&self, sidecar: &Sidecar, calls: &str, fault: &str) -> Injection {
        let mut tracer = self
            .command("strace")
            .args(["-f", "-p", &sidecar.pid().as_raw_nonzero().to_string(), "-e", &format!("trace={calls}")])
            .args(["-e", &format!("inject={calls}:{fault}"), "-o", "/dev/null"])
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command can be started");
        let mut said = String::new();
        let mut lines = BufReader::new(tracer.stderr.take().expect("it is piped"));
        lines.read_line(&mut said).expect("it can be read");
        assert!(
            said.contains(" attached"),
            "strace cannot trace a process of this test: {said:?}; tests/install-servers.sh installs it, and a container \
             has to allow ptrace (CAP_SYS_PTRACE)"
        );
        // Whatever else it says is read, so that it never waits for a reader.
        std::thread::spawn(move || lines.lines().map_while(Result::ok).for_each(drop));
        Injection { tracer }
    }

    /// `tradepost verify` finds nothing wrong.
    #[track_caller]
    pub fn assert_sound(&self) {
        let mut verify = tradepost_by(&self.launcher());
        let output = verify.args(["verify", "--data-dir"]).arg(self.data()).output().expect("it runs");
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(0), "{out}{err}");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        self.keeper.wait().ok();
    }
}

/// System calls fail until it is dropped.
pub struct Injection {
    tracer: Child,
}

impl Drop for Injection {
    fn drop(&mut self) {
        // Told so, it lets go of the sidecar, which goes on.
        kill_process(Pid::from_child(&self.tracer), Signal::INT).ok();
        self.tracer.wait().ok();
    }
}
