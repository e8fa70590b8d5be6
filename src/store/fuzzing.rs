//! The way in for the fuzz target of the record codec.

use super::codec::{Record, decode, encode};
use super::event_record::EventV1;
use super::events::EntryV1;
use super::records::{AgentV2, BalanceV1, ObservationV2, ReceiptV1, TombstoneV2, TotalsV2, TransactionV1};
use super::sinks::{ParkedV1, PostgresStateV1, RedisStateV1};

/// Reads `bytes` as a record of every kind.
///
/// # Panics
///
/// When a record that was read is not read back the same.
pub fn read_records(bytes: &[u8]) {
    if let Some(agent) = read::<AgentV2>(bytes) {
        // An error is an answer too: the availability may be none that is known.
        drop(agent.into_domain());
    }
    if let Some(event) = read::<EventV1>(bytes) {
        drop(event.into_domain());
    }
    if let Some(transaction) = read::<TransactionV1>(bytes) {
        drop(transaction.status());
    }
    read::<TombstoneV2>(bytes);
    read::<BalanceV1>(bytes);
    read::<TotalsV2>(bytes);
    read::<ReceiptV1>(bytes);
    read::<ObservationV2>(bytes);
    if let Some(entry) = read::<EntryV1>(bytes) {
        drop(entry.into_domain());
    }
    read::<PostgresStateV1>(bytes);
    read::<RedisStateV1>(bytes);
    read::<ParkedV1>(bytes);
}

fn read<R: Record>(bytes: &[u8]) -> Option<R> {
    let record = decode::<R>(bytes).ok()?;
    // Compared as bytes, since a score that is not a number is unlike itself; and after one round, since a number may
    // have come in more bytes than it needs.
    let once = encode(&record);
    let again = decode::<R>(&once).expect("what was written is read back");
    assert_eq!(encode(&again), once, "{} record", R::NAME);
    Some(record)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::read_records;

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(
            version in 0_u8..3,
            bytes in prop::collection::vec(prop_oneof![0_u8..8, any::<u8>()], 0..200),
        ) {
            read_records(&[&[version], &bytes[..]].concat());
        }
    }
}
