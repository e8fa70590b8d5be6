//! Documents: what the older clients must find in ours, what we must find in theirs, and what nobody may get in.

use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn agent() -> Agent {
    let observer = ObserverId::from_bytes([7; 16]);
    Agent {
        agent_id: AgentId::from_stored("thon"),
        name: "Thon \"the\" first".into(),
        capabilities: Capabilities::parse(["python", "Backend", "zig"]).unwrap(),
        cost_per_task: Money::parse("999999999999999999.999999999").unwrap(),
        currency: Currency::default(),
        billing_notes: None,
        availability: AvailabilityStatus::Busy,
        capacity_per_hour: Capacity::parse(12).unwrap(),
        last_updated: Timestamp::from_micros(1_795_391_431_767_109),
        reputation: Reputation { score: 0.1 + 0.2, total_feedback: 3, successful_tasks: 2, failed_tasks: 1 },
        metadata: JsonObject::parse(r#"{"n":123456789012345678901234567890,"price":1.10}"#).unwrap(),
        revision: 4,
        ttl: Ttl::parse(60).unwrap(),
        expires_at: Timestamp::from_micros(9),
        expired: false,
        version: AgentVersion { epoch: 5, seq: 4, node_id: NodeId::from_bytes([3; 16]) },
        claimed: true,
        baseline: Baseline::from([(observer, Counters { successes: 2, failures: 1, score: 0.1 + 0.2 })]),
    }
}

fn sighting(remaining_seconds: u64) -> Sighting {
    Sighting { now: Timestamp::from_micros(1_000), remaining: Duration::from_secs(remaining_seconds), deletion: None }
}

#[test]
fn an_older_client_finds_exactly_the_members_that_it_knows() {
    let document: Value = serde_json::from_str(&write(&agent())).unwrap();
    let members = |value: &Value| -> Vec<String> {
        let mut names: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        names.sort();
        names
    };
    assert_eq!(
        members(&document),
        ["agent_id", "availability", "capabilities", "metadata", "name", "pricing", "reputation", "tradepost"]
    );
    assert_eq!(members(&document["pricing"]), ["billing_notes", "cost_per_task", "currency"]);
    assert_eq!(members(&document["availability"]), ["capacity_per_hour", "last_updated", "status"]);
    assert_eq!(members(&document["reputation"]), ["failed_tasks", "score", "successful_tasks", "total_feedback"]);
    assert_eq!(document["capabilities"], serde_json::json!(["backend", "python", "zig"]));
    assert!(document["pricing"]["cost_per_task"].is_number() && document["pricing"]["billing_notes"].is_null());
    assert_eq!(document["availability"]["last_updated"], "2026-11-22T23:50:31.767109+00:00");
}

#[test]
fn a_full_baseline_is_read_and_a_larger_one_is_not() {
    let most = Counters { successes: u64::MAX, failures: u64::MAX, score: -f64::MIN_POSITIVE };
    let with = |observers: usize| {
        let observers = (0..observers as u128).map(|number| (ObserverId::from_bytes(number.to_be_bytes()), most));
        write(&Agent { baseline: observers.collect(), ..agent() })
    };
    assert!(with(MAX_OBSERVERS).len() < MAX_DOCUMENT_BYTES * 3 / 4, "there is room for metadata and capabilities");
    assert!(read("thon", with(MAX_OBSERVERS).as_bytes(), sighting(30)).is_ok());
    assert!(matches!(read("thon", with(MAX_OBSERVERS + 1).as_bytes(), sighting(30)), Err(Unreadable::Value(_))));
}

#[test]
fn ours_reads_back_to_the_last_digit() {
    let text = write(&agent());
    let read = read("thon", text.as_bytes(), sighting(30)).unwrap();
    let expires_at = Timestamp::from_micros(30_001_000);
    assert_eq!(read, Agent { expires_at, ..agent() });
    assert_eq!(write(&read), text);
    assert!(is_of_a_node(text.as_bytes()));
}

#[test]
fn an_older_clients_agent_is_nobodys_and_its_gaps_are_defaults() {
    let text = r#"{"agent_id": "did:thon.1", "name": "Thon", "capabilities": [" Python", "backend"],
        "pricing": {"cost_per_task": 0.30000000000000004, "currency": "usd", "billing_notes": null},
        "availability": {"status": "online", "capacity_per_hour": 30, "last_updated": "2026-11-22T23:50:31.767109"},
        "reputation": {"score": 4.5, "total_feedback": 1, "successful_tasks": 1, "failed_tasks": 0},
        "metadata": {}}"#;
    let full = read("did:thon.1", text.as_bytes(), sighting(90)).unwrap();
    assert_eq!((full.cost_per_task.to_string().as_str(), full.currency.as_str()), ("0.3", "USD"));
    assert_eq!(full.last_updated.to_string(), "2026-11-22T23:50:31.767109+00:00");
    assert_eq!((full.ttl.seconds(), full.node_id()), (90, NodeId::NIL));
    assert_eq!((full.version.epoch, full.version.seq), (0, 1_000));
    assert!(!is_of_a_node(text.as_bytes()));

    let bare = read("a", br#"{"agent_id":"a","name":"A"}"#, sighting(1)).unwrap();
    assert_eq!((bare.cost_per_task, bare.availability), (Money::ZERO, AvailabilityStatus::Online));
}

#[test]
fn an_older_clients_agent_begins_above_the_deletion_and_below_every_registration() {
    let deletion = AgentVersion { epoch: 70, seq: 2_000, node_id: NodeId::from_bytes([9; 16]) };
    let after = Sighting { deletion: Some(deletion), ..sighting(1) };
    let agent = read("a", br#"{"agent_id":"a","name":"A"}"#, after).unwrap();
    assert!(agent.version > deletion);
    assert!(agent.version < AgentVersion::begin(Timestamp::from_micros(0), agent.version.epoch, NodeId::NIL));
}

#[test]
fn one_bad_value_refuses_the_whole_document() {
    let good = write(&agent());
    let replaced = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        good.replacen(from, to, 1)
    };
    let rows = [
        String::new(),
        "null".into(),
        "[]".into(),
        good[..good.len() - 1].to_owned(),
        format!("{good}{good}"),
        replaced("\"thon\"", "\"other\""),
        replaced("\"name\":", "\"name\":\"x\",\"name\":"),
        replaced("\"backend\"", "\"\""),
        replaced("\"backend\"", "7"),
        replaced("\"USD\"", "\"U$D\""),
        replaced("\"busy\"", "\"asleep\""),
        replaced("\"capacity_per_hour\":12", "\"capacity_per_hour\":0"),
        replaced("\"capacity_per_hour\":12", "\"capacity_per_hour\":1e400"),
        replaced("2026-11-22T23", "2026-13-22T23"),
        replaced("\"score\":0.30000000000000004", "\"score\":5.1"),
        replaced("\"score\":0.30000000000000004", "\"score\":NaN"),
        replaced("\"total_feedback\":3", "\"total_feedback\":-3"),
        replaced("\"metadata\":{", "\"metadata\":{\"price\":2,"),
        replaced("\"metadata\":{", "\"metadata\":[{"),
        replaced("\"format\":1", "\"format\":2"),
        replaced("\"version\":\"0", "\"version\":\"+"),
        replaced("\"node_id\":\"0303", "\"node_id\":\"0403"),
        replaced("\"cost_per_task\":\"9", "\"cost_per_task\":\"-9"),
        replaced("\"cost_per_task\":\"9", "\"cost_per_task\":\"99"),
        replaced("\"ttl_seconds\":60", "\"ttl_seconds\":0"),
        replaced("\"tradepost\":{", "\"tradepost\":[{"),
        replaced("\"tradepost\":{", "\"tradepost\":{\"format\":1,"),
        replaced("\"successes\":2", "\"successes\":18446744073709551616"),
        format!(r#"{{"agent_id":"thon","name":"T","metadata":{}1{}}}"#, "{\"a\":".repeat(5_000), "}".repeat(5_000)),
        format!(r#"{{"agent_id":"thon","name":"T","x":{}}}"#, "[".repeat(100_000)),
        format!(r#"{{"agent_id":"thon","name":"{}"}}"#, "x".repeat(MAX_DOCUMENT_BYTES)),
    ];
    for text in rows {
        assert!(read("thon", text.as_bytes(), sighting(1)).is_err(), "{}", text.chars().take(400).collect::<String>());
    }
    assert!(read("thon", b"{\"agent_id\":\"thon\",\"name\":\"\xff\"}", sighting(1)).is_err());
}

proptest! {
    #[test]
    fn nothing_makes_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        drop(read("thon", &bytes, sighting(1)));
    }

    #[test]
    fn a_damaged_document_is_refused_or_still_keeps_every_rule(at in 0_usize..700, byte in any::<u8>()) {
        let mut bytes = write(&agent()).into_bytes();
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Ok(agent) = read("thon", &bytes, sighting(1)) {
            prop_assert!((0.0..=5.0).contains(&agent.reputation.score));
            prop_assert!(!agent.cost_per_task.is_negative() && !agent.name.is_empty());
            prop_assert_eq!(agent.agent_id.as_str(), "thon");
        }
    }
}
