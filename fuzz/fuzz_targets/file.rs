//! Bytes as alterations of a sound file: it is refused and left as it was, or answers as before.

#![no_main]

#[path = "../../tests/damage/mod.rs"]
mod damage;

use std::sync::LazyLock;

use damage::Sound;

static SOUND: LazyLock<Sound> = LazyLock::new(|| {
    // A panic that the store catches is damage to it; one that it does not catch is still found.
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
    Sound::build()
});

// Four bytes are one alteration: where in the file, three of them, little end first, and which bits of the byte there.
libfuzzer_sys::fuzz_target!(|alterations: &[u8]| {
    let mut bytes = SOUND.bytes.clone();
    for [a, b, c, bits] in alterations.as_chunks().0 {
        let place = u32::from_le_bytes([*a, *b, *c, 0]) as usize % bytes.len();
        bytes[place] ^= bits;
    }
    if let Err(wrong) = SOUND.open_altered(&bytes) {
        panic!("{wrong}");
    }
});
