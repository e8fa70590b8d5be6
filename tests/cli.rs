//! The command line of the real binary: every command against a running sidecar, its tables and JSON, its exit codes.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Output, Stdio};

use common::sidecar::{Home, Setup, tradepost};
use serde_json::{Value, json};

/// Runs a command line, words split at blanks.
fn run(words: &str) -> Output {
    run_with(words, &[])
}

/// The same, with words behind it that may hold blanks.
fn run_with(words: &str, more: &[&str]) -> Output {
    tradepost().args(words.split_whitespace()).args(more).output().expect("the binary runs")
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("output is UTF-8")
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("errors are UTF-8")
}

#[track_caller]
fn expect(output: Output, code: i32) -> Output {
    assert_eq!(output.status.code(), Some(code), "{}{}", out(&output), err(&output));
    output
}

#[track_caller]
fn json_of(output: Output) -> Value {
    let output = expect(output, 0);
    serde_json::from_str(&out(&output)).unwrap_or_else(|error| panic!("{error}: {}", out(&output)))
}

/// Each of these must be in the text.
#[track_caller]
fn shows(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "no {word:?} in:\n{text}");
    }
}

#[test]
fn every_client_command_works_as_json_and_as_a_table() {
    let home = Home::new();
    let sidecar = home.setup().start();
    let socket = sidecar.socket.clone().unwrap();
    let socket = socket.to_str().unwrap();
    // Flags before and behind the command, and both ways to the sidecar.
    let url = format!("http://{}", sidecar.address);
    let json = |words: &str| json_of(run(&format!("{words} --json --url {url}")));
    let table = |words: &str| out(&expect(run(&format!("--socket {socket} {words}")), 0));

    let thon = json(
        "agent register --id thon --name Thon --capability Python --capability sql --cost 18.50 --currency EUR --capacity 5 --availability busy --ttl 600 --metadata {\"k\":1.10}",
    );
    assert_eq!(thon["agent_id"], "thon");
    assert_eq!(thon["capabilities"], json!(["python", "sql"]));
    assert_eq!(thon["pricing"], json!({"cost_per_task": "18.5", "currency": "EUR", "billing_notes": null}));
    assert_eq!(thon["lease"]["ttl_seconds"].as_u64(), Some(600));
    shows(&table("agent register --id ada --name Ada --cost 0 --capability python"), &["ada", "Ada", "online", "live"]);
    shows(&table("agent register --replace --id ada --name Ada2 --cost 1 --capability python"), &["Ada2"]);
    assert_eq!(json("agent get thon"), sidecar.client().get("/v1/agents/thon").expect(200).json());
    shows(&table("agent get thon"), &["thon", "18.5", "EUR", "busy"]);
    assert_eq!(json("agent list")["items"].as_array().map(Vec::len), Some(2));
    assert_eq!(
        json("agent list --capability sql --availability busy --sort-by score --limit 1")["items"][0]["agent_id"],
        "thon"
    );
    shows(&table("agent list --all --include-expired"), &["thon", "ada", "Thon"]);
    let updated = json("agent update thon --availability online --no-capabilities --capacity 9 --if-match 1");
    assert_eq!((&updated["availability"]["status"], &updated["capabilities"]), (&json!("online"), &json!([])));
    assert_eq!(expect(run(&format!("agent update thon --name x --if-match 1 --url {url}")), 1).stdout, b"");
    shows(&table("agent update thon --capability sql"), &["sql"]);
    assert!(json("agent heartbeat thon")["expires_at"].is_string());
    shows(&table("agent heartbeat thon"), &["+00:00"]);
    assert_eq!(json("agent outcome thon --success --weight 2.5")["score"].as_f64(), Some(2.5));
    shows(&table("agent outcome thon --failure"), &["1.5"]);

    let recorded = json(
        "tx record --id t1 --payer genesis --provider thon --capability python --amount 0.1 --context {\"n\":1.10}",
    );
    assert_eq!((&recorded["amount"], &recorded["status"]), (&json!("0.1"), &json!("pending")));
    shows(
        &table("tx record --payer a --provider b --capability c --amount 1e2 --currency EUR"),
        &["100", "EUR", "pending"],
    );
    let lines = "{\"transaction_id\":\"f1\",\"payer_agent\":\"a\",\"provider_agent\":\"b\",\"capability\":\"c\",\"amount\":\"0.25\"}\n".to_owned()
        + "{\"transaction_id\":\"f2\",\"payer_agent\":\"a\",\"provider_agent\":\"b\",\"capability\":\"c\",\"amount\":2}\n";
    let file = home.path().join("lines.ndjson");
    fs::write(&file, lines).unwrap();
    expect(run_with(&format!("--url {url} tx record --file"), &[file.to_str().unwrap()]), 0);
    assert_eq!(json("tx get f2")["amount"], "2");
    shows(&table("tx get f1"), &["f1", "0.25", "pending"]);
    assert_eq!(
        json("tx list --agent a --role payer --status pending --capability c --order desc --limit 2")["items"]
            .as_array()
            .map(Vec::len),
        Some(2)
    );
    shows(&table("tx list --all --since 2020-01-01T00:00:00Z"), &["t1", "f1", "f2", "0.1"]);
    assert_eq!(json("tx list --until 2020-01-01T00:00:00Z")["items"], json!([]));
    assert_eq!(json("tx settlement t1")["payer"], "genesis");
    assert_eq!(json("tx settle t1")["status"], "settled");
    shows(&table("tx dispute t1 --evidence log --reason late"), &["disputed", "log"]);
    assert_eq!(json("tx evidence t1 --evidence photo")["evidence"], json!(["log", "photo"]));
    shows(&table("tx resolve t1 --outcome cancelled --note refund"), &["cancelled"]);
    assert_eq!(json("tx cancel f1 --reason wrong")["status"], "cancelled");
    let events = json("tx events t1");
    let kinds: Vec<&str> =
        events["items"].as_array().unwrap().iter().map(|event| event["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["recorded", "settled", "disputed", "evidence_added", "resolved"]);
    shows(&table("tx events t1"), &["recorded", "evidence_added", "photo"]);
    shows(&table("tx settlement f2"), &["f2", "pending"]);
    let exported = out(&expect(run(&format!("tx export --agent a --url {url}")), 0));
    assert_eq!(exported, sidecar.client().get("/v1/export/transactions?agent=a").expect(200).text());
    let target = home.path().join("export.ndjson");
    expect(run_with(&format!("--url {url} tx export --output"), &[target.to_str().unwrap()]), 0);
    assert_eq!(
        fs::read_to_string(&target).unwrap(),
        sidecar.client().get("/v1/export/transactions").expect(200).text()
    );

    assert_eq!(
        json(
            "discover search --capability sql --max-cost 20 --currency EUR --availability online --min-score 1 --limit 3"
        )["items"][0]["agent_id"],
        "thon"
    );
    shows(&table("discover search --capability sql --capability python"), &["thon", "ada"]);
    assert_eq!(json("discover recommend --capability sql --top-n 1 --include-busy")["items"][0]["agent_id"], "thon");
    shows(&table("discover recommend --capability python"), &["ada"]);
    assert_eq!(json("discover least-loaded --capability python")["agent_id"], "ada");
    shows(&table("discover least-loaded --capability python"), &["ada"]);
    assert_eq!(json("discover random --capability sql")["agent_id"], "thon");
    expect(run(&format!("discover random --url {url}")), 0);
    assert_eq!(json("discover capabilities"), json!({"python": 1, "sql": 1}));
    shows(&table("discover capabilities"), &["python", "sql", "1"]);

    assert_eq!(json("status")["store"]["transactions"].as_u64(), Some(4));
    shows(&table("status"), &["ready", "redis", "postgres", "off", "4 transactions"]);
    assert_eq!(json("sync status")["redis"]["state"], "off");
    assert_eq!(json("sync status postgres")["items"], json!([]));
    shows(&table("sync status"), &["redis", "postgres", "off"]);
    for refused in ["sync retry redis", "sync resync postgres"] {
        let output = expect(run(&format!("{refused} --json --url {url}")), 1);
        assert_eq!(serde_json::from_str::<Value>(&out(&output)).unwrap()["code"], "not_found");
    }
    shows(&table("agent unregister ada"), &["ada"]);
    expect(run(&format!("agent unregister thon --json --url {url}")), 0);
    assert_eq!(json("agent list")["items"], json!([]));
    assert_eq!(json("openapi"), sidecar.client().get("/openapi.json").expect(200).json());
}

#[test]
fn a_no_of_the_server_is_exit_1_with_its_problem() {
    let sidecar = Setup::in_memory().start();
    let url = format!("http://{}", sidecar.address);
    for (words, code, told) in [
        ("agent get nobody", "agent_not_found", "nobody"),
        ("agent register --id a.b --name n --cost 1", "invalid_agent_id", "agent"),
        ("agent register --id ok --name n --cost 0.1234567891", "invalid_cost_per_task", "cost_per_task"),
        ("agent list --limit 5 --cursor bad", "invalid_cursor", "cursor"),
        ("tx record --payer a --provider b --capability c --amount -1", "invalid_amount", "amount"),
        ("tx settle none", "transaction_not_found", "none"),
        ("tx list --since yesterday", "invalid_since", "since"),
        ("discover least-loaded --capability nothing", "no_match", ""),
    ] {
        let output = expect(run(&format!("{words} --json --url {url}")), 1);
        let problem: Value = serde_json::from_str(&out(&output)).unwrap_or_else(|error| panic!("{words}: {error}"));
        assert_eq!(problem["code"], code, "{words}");
        let output = expect(run(&format!("{words} --url {url}")), 1);
        assert!(
            out(&output).is_empty() && err(&output).contains(told) && err(&output).starts_with("error: "),
            "{}",
            err(&output)
        );
    }
}

#[test]
fn usage_errors_are_64_and_say_so_on_stderr() {
    for words in [
        "",
        "frobnicate",
        "agent",
        "agent get",
        "agent register --id x",
        "tx record --payer a",
        "tx list --status odd",
        "tx resolve t1 --outcome maybe",
        "serve --frobnicate",
        "serve --in-memory --data-dir /d",
        "serve --in-memory --ca-file /f",
        "completions powershell",
        "status surplus",
        "status --url not-a-url",
        "status --url ftp://127.0.0.1:1",
        "status --url http://127.0.0.1:1 --socket /s",
    ] {
        let output = expect(run(words), 64);
        assert!(out(&output).is_empty() && !output.stderr.is_empty(), "{words}: {}", out(&output));
    }
    for words in ["--help", "--version", "tx record --help"] {
        assert!(!expect(run(words), 0).stdout.is_empty(), "{words}");
    }
}

#[test]
fn where_nobody_listens_it_is_69() {
    let home = Home::new();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for place in [format!("--url http://{free}"), format!("--socket {}", home.path().join("none.sock").display())] {
        for words in ["status", "agent list", "tx settle t1 --json", "discover capabilities"] {
            let output = expect(run(&format!("{words} {place}")), 69);
            assert!(out(&output).is_empty() && !output.stderr.is_empty());
        }
    }
}

/// `serve` with these flags, which must refuse to start; never on the default ports in case it does not.
fn serve_refused(words: &str, code: i32) -> String {
    let output = Setup::in_memory().flags(&words.split_whitespace().collect::<Vec<_>>()).refused();
    err(&expect(output, code))
}

#[test]
fn settings_that_nobody_should_run_with_are_78() {
    for (words, told) in [
        ("--redis-url redis://:s3cret@localhost", "--redis-url-file"),
        ("--postgres-url postgres://u:s3cret@localhost/db", "--postgres-url-file"),
        ("--postgres-url postgres://localhost/db?user=u&password=s3cret", "--postgres-url-file"),
        ("--redis-url http://localhost", "redis://"),
        ("--agent-ttl 0", "--agent-ttl"),
        ("--stale-for soon", "--stale-for"),
        ("--log-level loud", "--log-level"),
        ("--token-file /nonexistent/token", "/nonexistent/token"),
        ("--config /nonexistent/config.toml", "/nonexistent/config.toml"),
        ("--allowed-host http://x", "--allowed-host"),
    ] {
        let said = serve_refused(words, 78);
        assert!(said.to_lowercase().contains(told) && !said.contains("s3cret"), "{words}: {said}");
    }
    // In the environment a password may stand, and is not shown.
    let output = tradepost().arg("config").env("TRADEPOST_REDIS_URL", "redis://:s3cret@localhost").output().unwrap();
    let shown = out(&expect(output, 0));
    assert!(shown.contains("redis://:***@localhost") && !shown.contains("s3cret"), "{shown}");
    // And a client's flag is as visible as the server's.
    let said = err(&expect(run("status --url http://u:s3cret@127.0.0.1:1"), 78));
    assert!(!said.contains("s3cret"), "{said}");
    let said = err(&expect(run("status --url https://127.0.0.1:1 --ca-file /nonexistent.pem"), 78));
    assert!(said.contains("/nonexistent.pem"), "{said}");
}

#[test]
fn beyond_loopback_only_with_a_token() {
    let home = Home::new();
    for (listen, metrics) in [("0.0.0.0:0", "none"), ("[::]:0", "none"), ("127.0.0.1:0", "0.0.0.0:0")] {
        let words = format!("serve --in-memory --listen {listen} --metrics-listen {metrics}");
        let said = err(&expect(run(&words), 78));
        assert!(said.contains("--token-file"), "{said}");
    }
    let token = private(&home, "token", "s3cret\n");
    let mut command = tradepost();
    command.args(["serve", "--in-memory", "--listen", "0.0.0.0:0", "--metrics-listen", "none", "--token-file", &token]);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
    let started = lines.any(|line| line.is_ok_and(|line| line.contains("serving the API")));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(started, "with a token it may listen anywhere");
    // A token that others can read is none.
    let open = home.path().join("open");
    fs::write(&open, "s3cret\n").unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
    let said = serve_refused(&format!("--token-file {}", open.display()), 78);
    assert!(said.contains("chmod 600"), "{said}");
}

fn private(home: &Home, name: &str, text: &str) -> String {
    let path = home.path().join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_client_shows_its_token_and_is_refused_without() {
    let home = Home::new();
    let (right, wrong) = (private(&home, "right", "s3cret\n"), private(&home, "wrong", "guess\n"));
    let sidecar = Setup::in_memory().flags(&["--token-file", &right]).start();
    let url = format!("http://{}", sidecar.address);
    expect(run(&format!("agent list --url {url} --token-file {right}")), 0);
    for words in [format!("agent list --url {url}"), format!("agent list --url {url} --token-file {wrong}")] {
        let output = expect(run(&words), 1);
        assert!(!err(&output).contains("guess"), "{}", err(&output));
    }
    let output =
        tradepost().args(["agent", "list", "--url", &url]).env("TRADEPOST_TOKEN_FILE", &right).output().unwrap();
    expect(output, 0);
}

#[test]
fn config_tells_every_setting_its_source_and_no_secret() {
    let home = Home::new();
    let file = private(
        &home,
        "tradepost.toml",
        "listen = \"127.0.0.1:1111\"\nagent-ttl = 60\npostgres-url = \"postgres://u:s3cret@h/db\"\nlog-level = \"debug\"\n",
    );
    let config = |flags: &[&str]| {
        let mut command = tradepost();
        command.arg("config").args(["--config", &file, "--listen", "127.0.0.1:2222"]).args(flags);
        command.env("TRADEPOST_REDIS_URL", "redis://:s3cret@h").env("TRADEPOST_LISTEN", "127.0.0.1:3333");
        command.env("TRADEPOST_AGENT_TTL", "120");
        expect(command.output().unwrap(), 0)
    };
    let shown = json_of(config(&["--json"]));
    let value =
        |setting: &str| (shown[setting]["value"].clone(), shown[setting]["source"].as_str().unwrap().to_owned());
    assert_eq!(value("listen"), (json!("127.0.0.1:2222"), "flag".to_owned()));
    assert_eq!(value("agent-ttl"), (json!(120), "environment".to_owned()));
    assert_eq!(value("log-level"), (json!("debug"), "file".to_owned()));
    assert_eq!(value("metrics-listen"), (json!("127.0.0.1:8000"), "default".to_owned()));
    assert_eq!(value("redis-url"), (json!("redis://:***@h"), "environment".to_owned()));
    assert_eq!(value("postgres-url"), (json!("postgres://u:***@h/db"), "file".to_owned()));
    assert_eq!(shown["log-level"]["path"], file.as_str());
    let table = out(&config(&[]));
    shows(&table, &["listen", "127.0.0.1:2222", "flag", "environment", "tradepost.toml", "default", "***"]);
    assert!(!table.contains("s3cret") && !shown.to_string().contains("s3cret"), "{table}");
    for (text, told) in [("liste = 1\n", "liste"), ("listen = \n", "TOML"), ("agent-ttl = 0\n", "agent-ttl")] {
        let bad = private(&home, "bad.toml", text);
        let said = err(&expect(run(&format!("config --config {bad}")), 78));
        assert!(said.contains(told), "{text}: {said}");
    }
}

#[test]
fn there_are_completions_for_three_shells() {
    for (shell, words) in [("bash", "complete -F"), ("zsh", "#compdef tradepost"), ("fish", "complete -c tradepost")] {
        let script = out(&expect(run(&format!("completions {shell}")), 0));
        shows(&script, &[words, "heartbeat", "least-loaded", "data-dir"]);
    }
}

#[test]
fn verify_and_compact_work_on_the_file_of_a_stopped_sidecar() {
    let home = Home::new();
    let data = home.data();
    let offline = |command: &str, flags: &[&str]| {
        tradepost().arg(command).arg("--data-dir").arg(&data).args(flags).output().expect("it runs")
    };
    for command in ["verify", "compact"] {
        expect(offline(command, &[]), 74);
        assert!(!data.exists(), "{command} made a directory");
    }
    let sidecar = home.setup().start();
    let batch: Vec<Value> = (1..2_000)
        .map(|amount| json!({"payer_agent": "a", "provider_agent": "b", "capability": "c", "amount": amount}))
        .collect();
    sidecar.client().post("/v1/transactions/batch", &json!(batch)).expect(200);
    let exported = sidecar.client().get("/v1/export/transactions").expect(200).body;
    sidecar.stop();
    let report = json_of(offline("verify", &["--json"]));
    assert_eq!((report["transactions"].as_u64(), report["events"].as_u64()), (Some(1_999), Some(1_999)));
    assert_eq!(report["findings"], json!([]));
    shows(&out(&expect(offline("verify", &[]), 0)), &["sound", "1999 transactions"]);
    let report = json_of(offline("compact", &["--json"]));
    assert!(report["after_bytes"].as_u64() <= report["before_bytes"].as_u64(), "{report}");
    assert_eq!(report["after_bytes"].as_u64(), Some(fs::metadata(home.file()).unwrap().len()));
    expect(offline("compact", &[]), 0);
    home.assert_sound();
    assert!(home.setup().start().client().get("/v1/export/transactions").expect(200).body == exported);
}

#[test]
fn without_flags_a_client_finds_the_socket_in_the_default_directory() {
    let home = Home::new();
    let sidecar = Setup::in_directory(home.path().join("tradepost")).start();
    sidecar.client().get("/livez").expect(200);
    let client = |name: &str, value: &Path| {
        let output = tradepost().args(["status", "--json"]).env(name, value).output().unwrap();
        json_of(output)["store"]["path"].as_str().map(str::to_owned)
    };
    let expected = Some(home.path().join("tradepost/tradepost.redb").to_str().unwrap().to_owned());
    assert_eq!(client("XDG_DATA_HOME", home.path()), expected);
    assert_eq!(client("TRADEPOST_DATA_DIR", &home.path().join("tradepost")), expected);
    assert_eq!(client("TRADEPOST_SOCKET", sidecar.socket.as_ref().unwrap()), expected);
}
