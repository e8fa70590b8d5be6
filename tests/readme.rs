//! The README's tour, run as it stands there: every command succeeds and its output holds what the README says.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::central::Central;
use common::sidecar::{Home, wait_for};

/// The blocks that are marked as parts of a tour.
fn tour(readme: &str, mark: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = readme.lines();
    while let Some(line) = lines.next() {
        if line == mark {
            blocks.push(lines.by_ref().take_while(|line| *line != "```").collect::<Vec<_>>().join("\n"));
        }
    }
    blocks
}

/// Commands of a block, each with what its output must hold.
fn commands(block: &str) -> Vec<(String, Vec<String>)> {
    let mut commands: Vec<(String, Vec<String>)> = Vec::new();
    for line in block.lines() {
        match line.strip_prefix("# → ") {
            Some(expected) => commands.last_mut().expect("an output follows a command").1.push(expected.to_owned()),
            None if ["curl ", "tradepost ", "psql "].iter().any(|program| line.starts_with(program)) => {
                commands.push((line.to_owned(), Vec::new()));
            }
            None => {
                let command = &mut commands.last_mut().expect("a block begins with a command").0;
                command.push('\n');
                command.push_str(line);
            }
        }
    }
    commands
}

fn readme() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).expect("the README")
}

/// The shell, where `tradepost` is the binary under test.
fn shell(command: &str) -> Command {
    let binary = Path::new(env!("CARGO_BIN_EXE_tradepost"));
    let mut path = binary.parent().expect("a binary lies in a directory").as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut shell = Command::new("sh");
    shell.args(["-euc", command]).env("PATH", path).env_remove("TRADEPOST_SOCKET").env_remove("TRADEPOST_TOKEN_FILE");
    shell
}

#[test]
fn the_tour_of_the_readme_works_as_it_stands_there() {
    assert!(
        Command::new("curl").arg("--version").output().is_ok_and(|output| output.status.success()),
        "the tour needs curl; on Debian: apt-get install curl"
    );
    let home = Home::new();
    let sidecar = home.setup().start();
    let url = format!("http://{}", sidecar.address);

    let mut checked = 0;
    for (command, expected) in tour(&readme(), "```sh tour").iter().flat_map(|block| commands(block)) {
        let here = command.replace("http://127.0.0.1:7700", &url);
        let output = shell(&here).env("TRADEPOST_URL", &url).output().expect("sh runs");
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{command}\n{stdout}{stderr}");
        assert!(!expected.is_empty(), "the README does not say what comes out of: {command}");
        for text in expected {
            assert!(stdout.contains(&text), "{command}\nshould say {text}, but said\n{stdout}{stderr}");
            checked += 1;
        }
    }
    assert!(checked >= 15, "the tour was found: {checked} outputs checked");
}

/// A reader goes from one command to the next more slowly than a test, so each is asked until it says what it should.
#[test]
fn the_tour_with_two_sidecars_works_as_it_stands_there() {
    let central = Central::start();
    let homes = [Home::new(), Home::new()];
    let sidecars = homes.each_ref().map(|home| central.setup(home).start());
    let [_, redis, _, postgres] = central.flags();
    let here = |command: &str| {
        command
            .replace("http://127.0.0.1:7701", &format!("http://{}", sidecars[0].address))
            .replace("http://127.0.0.1:7702", &format!("http://{}", sidecars[1].address))
            .replace("redis://127.0.0.1:6379", &redis)
            .replace("postgres://postgres@127.0.0.1:5432/market", &postgres)
    };
    let blocks = tour(&readme(), "```sh distributed");
    let mut all = blocks.iter().flat_map(|block| commands(block)).peekable();
    while let Some((command, _)) = all.next_if(|(command, _)| command.starts_with("tradepost serve")) {
        // They run already, on ports that are free here; the flags are checked all the same.
        let config = here(command.trim_end_matches('&')).replacen("serve", "config", 1);
        assert!(shell(&config).output().expect("sh runs").status.success(), "{config}");
    }
    let mut checked = 0;
    for (command, expected) in all {
        assert!(!expected.is_empty(), "the README does not say what comes out of: {command}");
        wait_for(&command, || {
            let output = shell(&here(&command)).output().expect("sh runs");
            let stdout = String::from_utf8_lossy(&output.stdout);
            (output.status.success() && expected.iter().all(|text| stdout.contains(text))).then_some(())
        });
        checked += expected.len();
    }
    assert!(checked >= 9, "the tour was found: {checked} outputs checked");
}
