//! The tokenizer against the Hugging Face library: small tokenizers of each kind, thousands of random texts, and every
//! Unicode character (fixtures/tokenizer/make.py).

#![allow(clippy::unwrap_used, reason = "a test")]

use fledgling_core::tokenizer::{StreamDecoder, Tokenizer};

#[derive(serde::Deserialize)]
struct Expected {
    fragments: Vec<String>,
    samples: Vec<Sample>,
    /// Hashes of the ids and of the decoded texts of each batch.
    batches: Vec<(String, String)>,
    sweep: Vec<String>,
}

#[derive(serde::Deserialize)]
struct Sample {
    text: String,
    ids: Vec<u32>,
}

const BATCH: usize = 100;

/// `SplitMix64`, as in the script.
struct Random(u64);

impl Random {
    fn next(&mut self, n: u64) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ z >> 31) % n) as usize
    }

    fn text(&mut self, fragments: &[String]) -> String {
        let mut text = String::new();
        for _ in 0..self.next(16) {
            match self.next(8) {
                0..5 => text.push_str(&fragments[self.next(fragments.len() as u64)]),
                5 => text.push(char::from_u32(self.next(0x80) as u32).unwrap()),
                6 => text.push(char::from_u32(self.next(0x3000) as u32).unwrap()),
                _ => text.push(char::from_u32(self.next(0x11_0000) as u32).unwrap_or(' ')),
            }
        }
        text
    }
}

/// FNV-1a, 64 bits.
struct Hash(u64);

impl Hash {
    fn new() -> Self {
        Self(0xCBF2_9CE4_8422_2325)
    }
    fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3);
        }
    }
    fn ids(&mut self, ids: &[u32]) {
        for id in ids.iter().chain(&[u32::MAX]) {
            self.add(&id.to_le_bytes());
        }
    }
    fn hex(&self) -> String {
        format!("{:016x}", self.0)
    }
}

fn check(tokenizer: &Tokenizer, expected: &Expected, decodes_alike: bool) {
    for sample in &expected.samples {
        assert_eq!(
            tokenizer.encode(&sample.text, false, true),
            sample.ids,
            "{:?}",
            sample.text
        );
    }
    let mut random = Random(1);
    for (batch, (want_ids, want_texts)) in expected.batches.iter().enumerate() {
        let (mut ids_hash, mut text_hash) = (Hash::new(), Hash::new());
        for _ in 0..BATCH {
            let text = random.text(&expected.fragments);
            let ids = tokenizer.encode(&text, false, true);
            ids_hash.ids(&ids);
            ids_hash.ids(&tokenizer.encode(&text, false, false));
            for skip_special in [true, false] {
                text_hash.add(tokenizer.decode(&ids, skip_special).as_bytes());
                text_hash.add(&[0xFF]);
            }
            assert_eq!(
                streamed(tokenizer, &ids),
                tokenizer.decode(&ids, true),
                "{text:?}"
            );
        }
        assert_eq!(&ids_hash.hex(), want_ids, "ids of batch {batch}");
        if decodes_alike {
            assert_eq!(&text_hash.hex(), want_texts, "texts of batch {batch}");
        }
    }
    let codes: Vec<char> = (0..0x3_2400)
        .chain(0xE_0000..0xE_0200)
        .filter_map(char::from_u32)
        .collect();
    for (chars, want) in codes.chunks(4096).zip(&expected.sweep) {
        let mut hash = Hash::new();
        for c in chars {
            hash.ids(&tokenizer.encode(&format!("a{c}1 {c}{c}'{c} \n{c}b"), false, true));
        }
        assert_eq!(
            &hash.hex(),
            want,
            "characters from U+{:04X}",
            chars[0] as u32
        );
    }
    assert_eq!(codes.chunks(4096).len(), expected.sweep.len());
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut decoder = StreamDecoder::default();
    let mut text: String = ids.iter().map(|&id| decoder.push(tokenizer, id)).collect();
    text.push_str(&decoder.finish());
    text
}

macro_rules! families {
    ($($name:ident, $decodes_alike:expr;)*) => {$(
        #[test]
        fn $name() {
            let json = include_bytes!(concat!("fixtures/tokenizer/", stringify!($name), ".json"));
            let expected: Expected = serde_json::from_str(include_str!(concat!("fixtures/tokenizer/", stringify!($name), ".expected.json"))).unwrap();
            let tokenizer = Tokenizer::from_hf_json(json, None).unwrap();
            check(&tokenizer, &expected, $decodes_alike);
        }
    )*};
}

families! {
    gpt2, true;
    smollm, true;
    llama3, true;
    qwen2, true;
    prefix, true;
    default, true;
    llama2, true;
    metaspace, true;
    unknown, true;
}
