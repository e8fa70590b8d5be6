//! How a record becomes bytes: one version byte, then the payload in bincode's standard encoding.
//!
//! This is the only file that knows bincode. The crate is no longer maintained; the wire format outlives it, and a
//! test shows that `wincode` reads the same bytes. A changed record is a new version with a new struct: appending even
//! an `Option` would break what is stored.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::StoreError;

/// The largest record that is read, in bytes: a transaction's facts with 64 KiB of context come to about 70 KiB. Whatever
/// others wrote is compared with it before it is stored, as it could not be read again.
const MAX_RECORD_BYTES: usize = 8 * 1024 * 1024;
/// The longest record that is known to be read back without trying: in memory, by which readers count, it is at most
/// sixteen times as large.
const SURELY_READ_BYTES: usize = MAX_RECORD_BYTES / 16;

/// A record that can be stored: a version and a name for error messages.
pub trait Record: Serialize + DeserializeOwned {
    /// The version byte that stands before this shape.
    const VERSION: u8;
    /// What the record is called in error messages.
    const NAME: &'static str;
}

/// The stored form.
pub fn encode<R: Record>(record: &R) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256);
    encode_as::<R>(record, &mut bytes);
    bytes
}

/// As [`encode`], for a record that grows with what others tell: one that could not be read back is not to be written,
/// for it would keep the file from ever being opened again.
pub fn encode_readable<R: Record>(record: &R) -> Result<Vec<u8>, StoreError> {
    let bytes = encode(record);
    if bytes.len() > SURELY_READ_BYTES {
        decode::<R>(&bytes)?;
    }
    Ok(bytes)
}

/// The stored form of an `R`, written from something of the same shape, behind what is in `bytes`.
pub fn encode_as<R: Record>(shape: &impl Serialize, bytes: &mut Vec<u8>) {
    bytes.push(R::VERSION);
    bincode::serde::encode_into_std_write(shape, bytes, bincode::config::standard())
        .expect("records hold only sized data, and a Vec takes every write");
}

/// Reads the stored form; anything but exactly one record of the known version is damage.
pub fn decode<R: Record>(bytes: &[u8]) -> Result<R, StoreError> {
    let damaged = |what: String| StoreError::Damaged(format!("{} record: {what}", R::NAME));
    let (version, payload) = bytes.split_first().ok_or_else(|| damaged("empty".into()))?;
    if *version != R::VERSION {
        return Err(damaged(format!("version {version}, but only {} is known", R::VERSION)));
    }
    let config = bincode::config::standard().with_limit::<MAX_RECORD_BYTES>();
    let (record, read) =
        bincode::serde::decode_from_slice(payload, config).map_err(|error| damaged(error.to_string()))?;
    if read == payload.len() { Ok(record) } else { Err(damaged(format!("{} stray bytes", payload.len() - read))) }
}
