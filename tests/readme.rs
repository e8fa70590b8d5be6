//! The README's tour, run as it stands there: every command succeeds and its output holds what the README says.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::sidecar::Home;

/// The blocks that are marked as parts of the tour.
fn tour(readme: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = readme.lines();
    while let Some(line) = lines.next() {
        if line == "```sh tour" {
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
            None if line.starts_with("curl ") || line.starts_with("tradepost ") => {
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

#[test]
fn the_tour_of_the_readme_works_as_it_stands_there() {
    assert!(
        Command::new("curl").arg("--version").output().is_ok_and(|output| output.status.success()),
        "the tour needs curl; on Debian: apt-get install curl"
    );
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).expect("the README");
    let home = Home::new();
    let sidecar = home.setup().start();
    let url = format!("http://{}", sidecar.address);
    let binary = Path::new(env!("CARGO_BIN_EXE_tradepost"));
    let mut path = binary.parent().expect("a binary lies in a directory").as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());

    let blocks = tour(&readme);
    let mut checked = 0;
    for (command, expected) in blocks.iter().flat_map(|block| commands(block)) {
        let here = command.replace("http://127.0.0.1:7700", &url);
        let output = Command::new("sh")
            .args(["-euc", &here])
            .env("PATH", &path)
            .env("TRADEPOST_URL", &url)
            .env_remove("TRADEPOST_SOCKET")
            .env_remove("TRADEPOST_TOKEN_FILE")
            .output()
            .expect("sh runs");
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
