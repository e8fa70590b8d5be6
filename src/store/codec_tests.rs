//! The stored bytes of every record version, byte for byte, and a second implementation that reads the same.
//!
//! A fixture that fails says that files written before could not be read any more: a changed record is a new version
//! with a fixture of its own, and the old ones stay here for good.

use std::fmt::Debug;
use std::sync::Arc;

use wincode::config::Configuration;
use wincode::{SchemaRead, SchemaWrite};

use super::codec::{Record, decode, encode};
use super::event_record::{EventV1, encode_event};
use super::events::{EntryV1, encode_entry};
use super::records::{
    AgentV2, BalanceSideV1, BalanceV1, ObservationV2, ReceiptV1, StoreAge, TombstoneV2, TotalsV2, TransactionV1,
};
use super::sinks::{ParkedV1, PostgresStateV1, RedisStateV1};
use crate::domain::fold::Fold;
use crate::domain::{
    Agent, AgentId, AgentVersion, AvailabilityStatus, Baseline, Canary, Capabilities, Capability, Capacity, Counters,
    Currency, Event, EventBody, EventId, Facts, JsonObject, LedgerEntry, Money, NodeId, ObserverId, ParkedEntry,
    ParkedKey, PostgresState, RedisState, Reputation, ResolutionOutcome, Timestamp, Total, TransactionId,
    TransactionStatus, Ttl,
};

const NODE: [u8; 16] = [0x11; 16];

fn agent() -> AgentV2 {
    let agent = Agent {
        agent_id: AgentId::from_stored("thon"),
        name: "Thon".to_owned(),
        capabilities: Capabilities::parse(["python", "backend"]).unwrap(),
        cost_per_task: Money::parse("18.5").unwrap(),
        currency: Currency::default(),
        billing_notes: Some("net 30".to_owned()),
        availability: AvailabilityStatus::Maintenance,
        capacity_per_hour: Capacity::parse(300).unwrap(),
        last_updated: Timestamp::from_micros(1_795_391_431_767_109),
        reputation: Reputation { score: 4.5, total_feedback: 12, successful_tasks: 11, failed_tasks: 1 },
        metadata: JsonObject::parse(r#"{"a":1.10}"#).unwrap(),
        revision: 7,
        ttl: Ttl::default(),
        expires_at: Timestamp::from_micros(1_795_395_031_767_109),
        expired: false,
        version: version(),
        claimed: true,
        baseline: baseline(),
    };
    AgentV2::from_domain(&agent, Some(70_000), StoreAge(500))
}

fn event(body: EventBody) -> EventV1 {
    let event = Event {
        event_id: EventId::from_bytes([0x22; 16]),
        transaction_id: TransactionId::from_stored("0197a1b2c3d4e5f60718293a4b5c6d7e"),
        facts: [0x33; 32],
        round: 1,
        node_id: NodeId::from_bytes(NODE),
        at: Timestamp::from_micros(-1),
        body,
    };
    let mut bytes = vec![0xee];
    encode_event(&event, 251, &mut bytes);
    let record: EventV1 = decode(&bytes[1..]).expect("what was written is read back");
    assert_eq!(encode(&record), bytes[1..], "both ways to write an event are one");
    assert_eq!(record.clone().into_domain(), event);
    record
}

fn recorded() -> EventV1 {
    event(EventBody::Recorded(Arc::new(Facts {
        payer_agent: AgentId::from_stored("genesis"),
        provider_agent: AgentId::from_stored("thon"),
        capability: Capability::from_stored("python"),
        amount: Money::parse("123456789012345678.123456789").unwrap(),
        currency: Currency::from_stored("EUR"),
        context: JsonObject::parse(r#"{"task_id":"t1"}"#).unwrap(),
    })))
}

fn resolved(outcome: ResolutionOutcome) -> EventV1 {
    let decisions = vec![EventId::from_bytes([0x44; 16]), EventId::from_bytes([0x55; 16])];
    event(EventBody::Resolved { outcome, note: Some("ok".to_owned()), decisions })
}

fn transaction() -> TransactionV1 {
    let at = |micros: i64| Timestamp::from_micros(1_795_391_431_767_000 + micros);
    let EventBody::Recorded(facts) = recorded().into_domain().body else { unreachable!("it is a recorded event") };
    let fold = Fold {
        facts,
        status: TransactionStatus::Disputed,
        conflict: None,
        created_at: at(109),
        updated_at: at(111),
        settled_at: Some(at(110)),
        evidence: vec!["log".to_owned()],
        current_round: 0,
        resolution_round: 0,
        decisions: Vec::new(),
    };
    TransactionV1::new(1, 300, &fold, vec![65_536, 65_537, 5_000_000_000])
}

fn entry() -> EntryV1 {
    let entry = LedgerEntry {
        event: event(EventBody::Settled).into_domain(),
        payer_agent: AgentId::from_stored("genesis"),
        provider_agent: AgentId::from_stored("thon"),
        recorded_by: NodeId::from_bytes([0x88; 16]),
        node_seq: 251,
        hash: Some([0x99; 32]),
    };
    let bytes = encode_entry(&entry);
    let record: EntryV1 = decode(&bytes).expect("what was written is read back");
    assert_eq!(encode(&record), bytes, "both ways to write an entry are one");
    assert_eq!(record.clone().into_domain(), entry);
    record
}

fn postgres_state() -> PostgresStateV1 {
    PostgresStateV1::from(&PostgresState {
        acked_seq: 70_000,
        acked_copies: 300,
        fence_hash: [0x99; 32],
        system_identifier: Some("7".to_owned()),
        snapshot: Some("1:2:".to_owned()),
        canary: Some(Canary { event_id: EventId::from_bytes([0x22; 16]), xid: 251 }),
        restarted: true,
    })
}

fn redis_state() -> RedisStateV1 {
    RedisStateV1::from(&RedisState {
        acked_change_seq: 70_000,
        nonce: Some("n".to_owned()),
        run_id: Some("r".to_owned()),
        stream_cursor: None,
    })
}

fn parked() -> ParkedV1 {
    ParkedV1::from(&ParkedEntry {
        key: ParkedKey::Seq(1),
        reason: "too long".to_owned(),
        code: "22001".to_owned(),
        parked_at: Timestamp::from_micros(-1),
        attempts: 3,
    })
}

fn balance() -> BalanceV1 {
    let total = Total::from_nanos;
    let paid = BalanceSideV1 { pending: total(0), settled: total(18_500_000_000), disputed: total(i128::MAX) };
    BalanceV1 { paid, earned: BalanceSideV1::default() }
}

fn totals() -> TotalsV2 {
    TotalsV2 {
        agents: 1,
        events: 2,
        copies: 9,
        transactions: [3, 4, 5, 1_000_000],
        numbered_agents: 70_000,
        change_seq: 7,
        revision_floor: u64::MAX,
        age_micros: 251,
        loads_from: 29_923_190,
    }
}

fn receipt() -> ReceiptV1 {
    ReceiptV1 { request: [0x66; 32], created: true, subject: "t1".to_owned(), at: StoreAge(500) }
}

fn tombstone() -> TombstoneV2 {
    TombstoneV2 {
        revision: 8,
        keep_until: StoreAge(3_600_000_000),
        change_seq: Some(9),
        version: version(),
        baseline: baseline(),
    }
}

fn version() -> AgentVersion {
    AgentVersion { epoch: 1_795_391_431_767_000, seq: 3, node_id: NodeId::from_bytes(NODE) }
}

fn baseline() -> Baseline {
    [(ObserverId::from_bytes([0x77; 16]), Counters { successes: 11, failures: 300, score: -1.5 })].into()
}

fn observation() -> ObservationV2 {
    let total = Counters { successes: 11, failures: 300, score: -1.5 };
    let offered = Counters { successes: 10, failures: 300, score: -2.0 };
    ObservationV2 { observer: ObserverId::from_bytes([0x77; 16]), total, acked: Counters::default(), offered }
}

/// The bytes of an event, which are the same for all of them up to the body.
fn event_hex(body: &str) -> String {
    let head = "01 fbfb00 1022222222222222222222222222222222 \
                203031393761316232633364346535663630373138323933613462356336643765 \
                3333333333333333333333333333333333333333333333333333333333333333 01 \
                1011111111111111111111111111111111 01";
    format!("{head} {body}")
}

#[track_caller]
fn assert_stored_as<R: Record + Debug + PartialEq>(record: &R, hex: &str) {
    let hex: String = hex.split_whitespace().collect();
    assert_eq!(to_hex(&encode(record)), hex, "{record:?}");
    assert_eq!(decode::<R>(&from_hex(&hex)).as_ref().ok(), Some(record));
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn agents_version_2() {
    assert_stored_as(
        &agent(),
        "02 0474686f6e 0454686f6e 02 076261636b656e64 06707974686f6e fd00325f9d08000000 03555344 01066e6574203330 02 \
         fb2c01 fd8ae80b49ccc10c00 0000000000001240 0c 0b 01 0a7b2261223a312e31307d 07 fb100e fd8a3033f6cdc10c00 00 \
         fdd8f38524e6600600 03 1011111111111111111111111111111111 01 \
         01 1077777777777777777777777777777777 0b fb2c01 000000000000f8bf 01fc70110100 fbf401",
    );
}

#[test]
fn tombstones_version_2() {
    assert_stored_as(
        &tombstone(),
        "02 08 fc00a493d6 0109 fdd8f38524e6600600 03 1011111111111111111111111111111111 \
         01 1077777777777777777777777777777777 0b fb2c01 000000000000f8bf",
    );
}

#[test]
fn observations_version_2() {
    assert_stored_as(
        &observation(),
        "02 1077777777777777777777777777777777 0b fb2c01 000000000000f8bf 00 00 0000000000000000 \
         0a fb2c01 00000000000000c0",
    );
}

#[test]
fn events_version_1() {
    assert_stored_as(
        &recorded(),
        &event_hex(
            "00 0767656e65736973 0474686f6e 06707974686f6e fe2ab286fc4fe5b1e2fb3dcc0000000000 03455552 \
             107b227461736b5f6964223a227431227d",
        ),
    );
    assert_stored_as(&event(EventBody::Settled), &event_hex("01"));
    assert_stored_as(&event(EventBody::Cancelled { reason: None }), &event_hex("02 00"));
    let evidence = || vec!["log".to_owned(), String::new()];
    let disputed = EventBody::Disputed { reason: Some("late".to_owned()), evidence: evidence() };
    assert_stored_as(&event(disputed), &event_hex("03 01046c617465 02 036c6f67 00"));
    assert_stored_as(&event(EventBody::EvidenceAdded { evidence: evidence() }), &event_hex("04 02 036c6f67 00"));
    let resolution = "01026f6b 02 1044444444444444444444444444444444 1055555555555555555555555555555555";
    assert_stored_as(&resolved(ResolutionOutcome::Settled), &event_hex(&format!("05 {resolution}")));
    assert_stored_as(&resolved(ResolutionOutcome::Cancelled), &event_hex(&format!("06 {resolution}")));
}

#[test]
fn transactions_version_1() {
    assert_stored_as(
        &transaction(),
        "01 01 fb2c01 03 fd8ee80b49ccc10c00 01fd8ce80b49ccc10c00 01 03 fc00000100 fc01000100 fd00f2052a01000000",
    );
}

#[test]
fn balances_version_1() {
    assert_stored_as(&balance(), "01 00 fd00325f9d08000000 fefeffffffffffffffffffffffffffffff 00 00 00");
}

#[test]
fn totals_version_2() {
    assert_stored_as(&totals(), "02 01 02 09 03 04 05 fc40420f00 fc70110100 07 fdffffffffffffffff fbfb00 fc7697c801");
}

#[test]
fn ledger_entries_version_1() {
    let event = event_hex("01");
    let event = event.strip_prefix("01 ").expect("the version of an event, which is part of its entry's");
    assert_stored_as(
        &entry(),
        &format!(
            "01 0767656e65736973 0474686f6e 1088888888888888888888888888888888 \
             01 9999999999999999999999999999999999999999999999999999999999999999 {event}"
        ),
    );
}

#[test]
fn states_of_sinks_version_1() {
    assert_stored_as(
        &postgres_state(),
        "01 fc70110100 fb2c01 9999999999999999999999999999999999999999999999999999999999999999 0101 37 \
         0104313a323a 01 1022222222222222222222222222222222 fbfb00 01",
    );
    assert_stored_as(&redis_state(), "01 fc70110100 01016e 010172 00");
}

#[test]
fn parked_entries_version_1() {
    assert_stored_as(&parked(), "01 08746f6f206c6f6e67 053232303031 01 03");
}

#[test]
fn receipts_version_1() {
    assert_stored_as(
        &receipt(),
        "01 6666666666666666666666666666666666666666666666666666666666666666 01 027431 fbf401",
    );
}

#[test]
fn anything_but_one_whole_record_of_a_known_version_is_damage() {
    let whole = encode(&recorded());
    for length in 0..whole.len() {
        assert!(decode::<EventV1>(&whole[..length]).is_err(), "{length} bytes of {}", whole.len());
    }
    let stray = [&whole[..], &[0]].concat();
    let newer = [&[EventV1::VERSION + 1], &whole[1..]].concat();
    // The first text's length says 2^63 bytes; they must be refused before room is made for them.
    let boundless = [&[AgentV2::VERSION, 253][..], &(1_u64 << 63).to_le_bytes(), &[0; 64]].concat();
    for (bytes, reason) in [(&stray, "stray"), (&newer, "version 2")] {
        let error = decode::<EventV1>(bytes).unwrap_err().to_string();
        assert!(error.contains("event record") && error.contains(reason), "{error}");
    }
    assert!(decode::<AgentV2>(&boundless).is_err());
}

/// The same records in the words of another implementation of the format.
mod mirror {
    use super::{SchemaRead, SchemaWrite};

    #[derive(Debug, PartialEq, SchemaRead, SchemaWrite)]
    pub struct Agent {
        pub agent_id: String,
        pub name: String,
        pub capabilities: Vec<String>,
        pub cost_per_task: i128,
        pub currency: String,
        pub billing_notes: Option<String>,
        pub availability: u8,
        pub capacity_per_hour: u32,
        pub last_updated: i64,
        pub score: f64,
        pub total_feedback: u64,
        pub successful_tasks: u64,
        pub failed_tasks: u64,
        pub metadata: String,
        pub revision: u64,
        pub ttl: u32,
        pub expires_at: i64,
        pub expired: bool,
        pub version: Version,
        pub claimed: bool,
        pub baseline: Vec<(Vec<u8>, Counters)>,
        pub change_seq: Option<u64>,
        pub written_at: u64,
    }

    #[derive(Debug, PartialEq, SchemaRead, SchemaWrite)]
    pub struct Version {
        pub epoch: u64,
        pub seq: u64,
        pub node_id: Vec<u8>,
    }

    #[derive(Debug, PartialEq, SchemaRead, SchemaWrite)]
    pub struct Counters {
        pub successes: u64,
        pub failures: u64,
        pub score: f64,
    }

    #[derive(Debug, PartialEq, SchemaRead, SchemaWrite)]
    pub struct Event {
        pub node_seq: u64,
        pub event_id: Vec<u8>,
        pub transaction_id: String,
        pub facts: [u8; 32],
        pub round: u32,
        pub node_id: Vec<u8>,
        pub at: i64,
        pub body: EventBody,
    }

    #[derive(Debug, PartialEq, SchemaRead, SchemaWrite)]
    pub enum EventBody {
        Recorded(Facts),
        Settled,
        Cancelled { reason: Option<String> },
        Disputed { reason: Option<String>, evidence: Vec<String> },
        EvidenceAdded { evidence: Vec<String> },
        ResolvedSettled { note: Option<String>, decisions: Vec<Vec<u8>> },
        ResolvedCancelled { note: Option<String>, decisions: Vec<Vec<u8>> },
    }

    #[derive(Debug, PartialEq, SchemaRead, SchemaWrite)]
    pub struct Facts {
        pub payer_agent: String,
        pub provider_agent: String,
        pub capability: String,
        pub amount: i128,
        pub currency: String,
        pub context: String,
    }

    #[derive(Debug, PartialEq, SchemaRead, SchemaWrite)]
    pub struct Transaction {
        pub payer: u32,
        pub provider: u32,
        pub status: u8,
        pub updated_at: i64,
        pub settled_at: Option<i64>,
        pub has_evidence: bool,
        pub events: Vec<u64>,
    }
}

/// What `wincode` reads in a record's payload, having shown that it would write the same.
macro_rules! read_by_wincode {
    ($mirror:ty, $record:expr) => {{
        let bytes = encode(&$record);
        let config = Configuration::default().with_varint_encoding();
        let read: $mirror = wincode::config::deserialize_exact(&bytes[1..], config).expect("wincode reads the record");
        assert_eq!(wincode::config::serialize(&read, config).expect("wincode writes the record"), bytes[1..]);
        read
    }};
}

#[test]
fn wincode_reads_and_writes_the_same_agent() {
    let read = read_by_wincode!(mirror::Agent, agent());
    let expected = mirror::Agent {
        agent_id: "thon".to_owned(),
        name: "Thon".to_owned(),
        capabilities: vec!["backend".to_owned(), "python".to_owned()],
        cost_per_task: 18_500_000_000,
        currency: "USD".to_owned(),
        billing_notes: Some("net 30".to_owned()),
        availability: 2,
        capacity_per_hour: 300,
        last_updated: 1_795_391_431_767_109,
        score: 4.5,
        total_feedback: 12,
        successful_tasks: 11,
        failed_tasks: 1,
        metadata: r#"{"a":1.10}"#.to_owned(),
        revision: 7,
        ttl: 3_600,
        expires_at: 1_795_395_031_767_109,
        expired: false,
        version: mirror::Version { epoch: 1_795_391_431_767_000, seq: 3, node_id: NODE.to_vec() },
        claimed: true,
        baseline: vec![(vec![0x77; 16], mirror::Counters { successes: 11, failures: 300, score: -1.5 })],
        change_seq: Some(70_000),
        written_at: 500,
    };
    assert_eq!(read, expected);
}

#[test]
fn wincode_reads_and_writes_the_same_events() {
    let read = read_by_wincode!(mirror::Event, recorded());
    assert_eq!((read.node_seq, read.round, read.at), (251, 1, -1));
    assert_eq!((read.event_id, read.node_id, read.facts), (vec![0x22; 16], NODE.to_vec(), [0x33; 32]));
    let facts = mirror::Facts {
        payer_agent: "genesis".to_owned(),
        provider_agent: "thon".to_owned(),
        capability: "python".to_owned(),
        amount: 123_456_789_012_345_678_123_456_789,
        currency: "EUR".to_owned(),
        context: r#"{"task_id":"t1"}"#.to_owned(),
    };
    assert_eq!(read.body, mirror::EventBody::Recorded(facts));

    let (note, decisions) = (Some("ok".to_owned()), vec![vec![0x44; 16], vec![0x55; 16]]);
    let evidence = || vec!["log".to_owned()];
    let reason = || Some("late".to_owned());
    let disputed = EventBody::Disputed { reason: reason(), evidence: evidence() };
    for (record, expected) in [
        (event(EventBody::Settled), mirror::EventBody::Settled),
        (event(EventBody::Cancelled { reason: reason() }), mirror::EventBody::Cancelled { reason: reason() }),
        (event(disputed), mirror::EventBody::Disputed { reason: reason(), evidence: evidence() }),
        (
            event(EventBody::EvidenceAdded { evidence: evidence() }),
            mirror::EventBody::EvidenceAdded { evidence: evidence() },
        ),
        (
            resolved(ResolutionOutcome::Settled),
            mirror::EventBody::ResolvedSettled { note: note.clone(), decisions: decisions.clone() },
        ),
        (resolved(ResolutionOutcome::Cancelled), mirror::EventBody::ResolvedCancelled { note, decisions }),
    ] {
        assert_eq!(read_by_wincode!(mirror::Event, record).body, expected);
    }
}

#[test]
fn wincode_reads_and_writes_the_same_transaction() {
    let read = read_by_wincode!(mirror::Transaction, transaction());
    let expected = mirror::Transaction {
        payer: 1,
        provider: 300,
        status: 3,
        updated_at: 1_795_391_431_767_111,
        settled_at: Some(1_795_391_431_767_110),
        has_evidence: true,
        events: vec![65_536, 65_537, 5_000_000_000],
    };
    assert_eq!(read, expected);
}
