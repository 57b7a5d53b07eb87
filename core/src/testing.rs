//! Tiny random models built in memory, for the tests of the crates above (feature `testing`).

use crate::{
    gguf::{Gguf, Header, Layout, Metadata, StringArray, TensorDecl, TensorInfo, split},
    model::ModelInfo,
    quant::{self, DType, Importance},
    spec::{Family, ModelSpec, Position, Role, TensorEntry, tensor_table},
    tokenizer::{StreamDecoder, Tokenizer},
};
use bytes::Bytes;

/// The template that most small models use.
pub const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// The last ids of the vocabulary.
const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// Pairs in the order of their ranks; each makes one more token.
const MERGES: [&str; 40] = [
    "Ġ t", "h e", "Ġ a", "i n", "r e", "o n", "Ġt he", "e r", "Ġ s", "a t", "n d", "Ġ w", "o u",
    "i t", "i s", "Ġ o", "e n", "Ġ h", "o r", "Ġ b", "e s", "in g", "Ġ f", "Ġa nd", "e d", "Ġ m",
    "Ġo f", "Ġ p", "a n", "a r", "Ġ c", "Ġt o", "Ġ in", "l l", "Ġ d", "a l", "l e", "Ġ l", "t h",
    "Ġ g",
];

/// A complete GGUF file of a tiny model with random weights: 2 layers, 64 wide, 4 heads (2 for k and v but in GPT-2, and in
/// Qwen 3 twice as wide together as the model), context 128, byte-level tokenizer of about 300 ids with `<|im_start|>`, `<|im_end|>` and `<|endoftext|>`,
/// a ChatML template; matrices in `dtype`. The same seed gives the same bytes.
///
/// GPT-2 ties the output to the embedding, the others have an output matrix. The special tokens' rows there are small,
/// so that greedy decoding never picks them and a generation runs as long as it may.
pub fn tiny_model(family: Family, dtype: DType, seed: u64) -> Vec<u8> {
    random_model(&tiny_spec(family), dtype, seed)
}

/// As [`tiny_model`], of any size. Where a row is no whole number of blocks, llama.cpp's next type is taken
/// ([`quant::fitting`]).
///
/// # Panics
/// When the vocabulary has not the size of [`tiny_spec`]'s.
pub fn random_model(spec: &ModelSpec, dtype: DType, seed: u64) -> Vec<u8> {
    let family = spec.family;
    assert_eq!(spec.vocab_size, tiny_spec(family).vocab_size);
    let mut metadata = spec.to_metadata();
    metadata.set("general.name", format!("tiny-{}", family.name()));
    metadata.extend(tiny_tokenizer(family));
    metadata.set("tokenizer.chat_template", CHATML);

    let table = tensor_table(spec);
    let stored = |entry: &TensorEntry| match entry.shape.last() {
        Some(n_cols) if entry.quantizable => quant::fitting(dtype, *n_cols),
        _ => DType::F32,
    };
    let decls = table.iter().map(|entry| TensorDecl {
        name: entry.gguf.clone(),
        dtype: stored(entry),
        shape: entry.shape.clone(),
    });
    let layout = Layout::new(metadata, decls).expect("a layout of ours is valid");
    let mut rng = SplitMix64(seed);
    let mut writer = layout.write_to(Vec::new()).expect("a Vec takes all bytes");
    for entry in &table {
        let mut bytes = Vec::new();
        quant::quantize(stored(entry), &weights(entry, &mut rng), &mut bytes);
        writer
            .write_tensor(&entry.gguf, &bytes)
            .expect("tensors come in the table's order");
    }
    writer.finish().expect("all tensors came")
}

/// [`tiny_model`] in files of at most `max_bytes` ([`split::split`]), told apart from others by its seed.
///
/// # Panics
/// When something is wrong with this crate.
pub fn tiny_parts(family: Family, dtype: DType, seed: u64, max_bytes: u64) -> Vec<Vec<u8>> {
    let whole = Gguf::parse(tiny_model(family, dtype, seed).into()).expect("a valid file");
    let header = whole.header();
    let decls: Vec<_> = header.tensors.iter().map(decl_of).collect();
    let id = seed.to_string();
    let layouts = split::split(&header.metadata, &decls, max_bytes, &id).expect("valid parts");
    let write = |layout: Layout| {
        let names: Vec<_> = layout
            .header()
            .tensors
            .iter()
            .map(|info| info.name.clone())
            .collect();
        let mut writer = layout.write_to(Vec::new()).expect("a Vec takes all bytes");
        for name in names {
            let (_, bytes) = whole.tensor(&name).expect("it is there");
            writer.write_tensor(&name, &bytes).expect("in order");
        }
        writer.finish().expect("all tensors came")
    };
    layouts.into_iter().map(write).collect()
}

/// What the fuzz target `parts` and the replay of its corpus do: files, each behind its length of four bytes, as the parts of a
/// model.
///
/// # Panics
/// When something is wrong with this crate.
pub fn exercise_parts(mut bytes: &[u8]) {
    let mut parts = Vec::new();
    while let Some((len, rest)) = bytes.split_first_chunk::<4>() {
        let len = (u32::from_le_bytes(*len) as usize).min(rest.len());
        parts.push(Bytes::copy_from_slice(&rest[..len]));
        bytes = &rest[len..];
    }
    let Ok(gguf) = Gguf::from_parts(parts) else {
        return;
    };
    check_rewriting(gguf.header());
    let _ = ModelInfo::from_header(gguf.header());
    for info in &gguf.header().tensors {
        let values = gguf
            .tensor_f32(&info.name)
            .expect("tensors lie within their part");
        assert_eq!(values.len() as u64, info.shape.iter().product::<u64>());
    }
}

/// What the fuzz target `gguf` and the replay of its corpus do with a file: everything that reads foreign bytes,
/// up to the weights, and a check that what was read can be written and read again.
///
/// # Panics
/// When something is wrong with this crate.
pub fn exercise_file(bytes: &[u8]) {
    let Ok(header) = Header::parse(bytes) else {
        return;
    };
    check_rewriting(&header);
    let _ = ModelInfo::from_header(&header);
    let Ok(gguf) = Gguf::parse(Bytes::copy_from_slice(bytes)) else {
        return;
    };
    let _ = ModelSpec::from_gguf(&gguf);
    if let Ok(importance) = Importance::from_gguf(&gguf) {
        for name in importance.names() {
            let _ = importance.means(name);
        }
    }
    for info in &header.tensors {
        let values = gguf
            .tensor_f32(&info.name)
            .expect("tensors lie within the file");
        assert_eq!(values.len() as u64, info.shape.iter().product::<u64>());
    }
}

/// What the fuzz target `tokenizer` and the replay of its corpus do. The first byte chooses:
/// a text through the tokenizers of the tiny models, or a `tokenizer.json` from somewhere.
///
/// # Panics
/// When something is wrong with this crate.
pub fn exercise_tokenizer(bytes: &[u8]) {
    let Some((mode, rest)) = bytes.split_first() else {
        return;
    };
    if mode % 2 == 1 {
        if let Ok(tokenizer) = Tokenizer::from_hf_json(rest, None) {
            let ids = tokenizer.encode("The quick brown fox, 123 ¿?", true, true);
            let _ = tokenizer.decode(&ids, false);
            let _ = Tokenizer::from_metadata(&tokenizer.to_metadata());
        }
        return;
    }
    let family = if mode & 2 == 0 {
        Family::Gpt2
    } else {
        Family::Llama
    };
    let tokenizer = Tokenizer::from_metadata(&tiny_tokenizer(family)).expect("a valid tokenizer");
    let text = String::from_utf8_lossy(rest);
    for parse_special in [false, true] {
        let ids = tokenizer.encode(&text, false, parse_special);
        assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size()));
        assert_eq!(tokenizer.decode(&ids, false), text);
        let mut decoder = StreamDecoder::default();
        let mut streamed: String = ids.iter().map(|id| decoder.push(&tokenizer, *id)).collect();
        streamed.push_str(&decoder.finish());
        assert_eq!(streamed, tokenizer.decode(&ids, true));
    }
}

fn decl_of(info: &TensorInfo) -> TensorDecl {
    TensorDecl {
        name: info.name.clone(),
        dtype: info.dtype,
        shape: info.shape.iter().rev().map(|n| *n as usize).collect(),
    }
}

/// That a header survives the writer. The offsets may differ: other tools may leave gaps.
fn check_rewriting(header: &Header) {
    let decls = header.tensors.iter().map(decl_of);
    let Ok(layout) = Layout::new(header.metadata.clone(), decls) else {
        return;
    };
    let planned = layout.header().clone();
    let mut written = Vec::new();
    layout
        .write_to(&mut written)
        .expect("a Vec takes all bytes");
    let again = Header::parse(&written).expect("what the writer writes is valid");
    // Bytes and not values are compared, because a NaN is not equal to itself.
    assert_eq!(format!("{again:?}"), format!("{planned:?}"));
    assert_eq!(again.tensors.len(), header.tensors.len());
}

/// The architecture of [`tiny_model`].
pub fn tiny_spec(family: Family) -> ModelSpec {
    let head_dim = if family == Family::Qwen3 { 32 } else { 16 };
    let rotary = |pairing| Position::Rope {
        base: 10_000.0,
        dim: head_dim,
        pairing,
        freq_factors: Vec::new(),
    };
    let is_gpt2 = family == Family::Gpt2;
    ModelSpec {
        family,
        n_layer: 2,
        n_head: 4,
        n_kv_head: if is_gpt2 { 4 } else { 2 },
        head_dim,
        n_embd: 64,
        n_ff: if is_gpt2 { 256 } else { 160 },
        n_ctx: 128,
        vocab_size: 256 + MERGES.len() + SPECIAL.len(),
        norm: family.norm(),
        norm_eps: 1e-5,
        position: family.pairing().map_or(Position::Learned, rotary),
        mlp: family.mlp(),
        bias: family.bias(),
        qk_norm: family.qk_norm(),
        tied_embedding: is_gpt2,
    }
}

/// As [`tiny_spec`], with rows of 256 and 512 elements, which the K types need.
pub fn wide_spec(family: Family) -> ModelSpec {
    let mut spec = tiny_spec(family);
    spec.head_dim = 64;
    (spec.n_embd, spec.n_ff) = (256, 512);
    if let Position::Rope { dim, .. } = &mut spec.position {
        *dim = 64;
    }
    spec
}

/// The `tokenizer.*` keys of [`tiny_model`], as llama.cpp's converter writes them.
pub fn tiny_tokenizer(family: Family) -> Metadata {
    let mut tokens: Vec<String> = byte_alphabet().iter().map(char::to_string).collect();
    tokens.extend(MERGES.iter().map(|pair| pair.replace(' ', "")));
    let n_normal = tokens.len();
    tokens.extend(SPECIAL.iter().map(ToString::to_string));
    // 1 is a normal token, 3 a control token (llama.cpp's `llama_token_type`).
    let types: Vec<i32> = (0..tokens.len())
        .map(|id| if id < n_normal { 1 } else { 3 })
        .collect();
    let (end_of_text, im_end) = (n_normal as u32, n_normal as u32 + 2);
    let is_gpt2 = family == Family::Gpt2;

    let mut metadata = Metadata::new();
    metadata.set("tokenizer.ggml.model", "gpt2");
    let pre = match family {
        Family::Gpt2 => "gpt-2",
        Family::Llama => "smollm",
        Family::Qwen2 | Family::Qwen3 => "qwen2",
    };
    metadata.set("tokenizer.ggml.pre", pre);
    metadata.set(
        "tokenizer.ggml.tokens",
        tokens.iter().collect::<StringArray>(),
    );
    metadata.set("tokenizer.ggml.token_type", types);
    metadata.set(
        "tokenizer.ggml.merges",
        MERGES.iter().collect::<StringArray>(),
    );
    metadata.set("tokenizer.ggml.bos_token_id", end_of_text);
    metadata.set(
        "tokenizer.ggml.eos_token_id",
        if is_gpt2 { end_of_text } else { im_end },
    );
    metadata.set("tokenizer.ggml.add_bos_token", false);
    metadata
}

/// The characters that stand for the 256 bytes, in the order of GPT-2's ids: printable Latin-1 for itself, then
/// the others from U+0100 on (`bytes_to_unicode` of GPT-2's encoder.py).
fn byte_alphabet() -> Vec<char> {
    let printable = ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ');
    let mut alphabet: Vec<char> = printable.collect();
    let others = 256 - alphabet.len() as u32;
    alphabet.extend((256..256 + others).filter_map(char::from_u32));
    alphabet
}

/// Random values of a size that keeps activations near 1 and makes the layers outweigh the embedding, so that
/// greedy decoding does not repeat its last token.
fn weights(entry: &TensorEntry, rng: &mut SplitMix64) -> Vec<f32> {
    let n_cols = *entry.shape.last().expect("a shape has an axis");
    let len = entry.shape.iter().product();
    let (mean, spread) = match entry.role {
        Role::AttnNorm | Role::AttnQNorm | Role::AttnKNorm | Role::FfnNorm | Role::OutputNorm => {
            (1.0, 0.2)
        }
        Role::TokenEmbd | Role::PositionEmbd | Role::Output => (0.0, 0.5),
        _ if entry.shape.len() == 1 => (0.0, 0.1),
        _ => (0.0, 4.0 / (n_cols as f32).sqrt()),
    };
    let special_rows = match entry.role {
        Role::TokenEmbd | Role::Output => len - SPECIAL.len() * n_cols..len,
        _ => 0..0,
    };
    (0..len)
        .map(|i| {
            let x = mean + spread * rng.next_signed();
            if special_rows.contains(&i) {
                x * 0.05
            } else {
                x
            }
        })
        .collect()
}

/// Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
struct SplitMix64(u64);

impl SplitMix64 {
    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [-1, 1).
    fn next_signed(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The stored corpus of the fuzz target `tokenizer`.
    #[test]
    fn the_fuzz_corpus_of_the_tokenizer_is_replayed() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/tokenizer");
        let mut n_files = 0;
        for entry in std::fs::read_dir(dir).expect("the corpus is in the repository") {
            exercise_tokenizer(&std::fs::read(entry.expect("an entry").path()).expect("a file"));
            n_files += 1;
        }
        assert!(n_files >= 8, "the corpus in {dir} has only {n_files} files");
    }

    #[test]
    fn tiny_models_are_whole_files() {
        for family in Family::ALL {
            for dtype in DType::ALL {
                let bytes = tiny_model(family, dtype, 7);
                assert_eq!(bytes, tiny_model(family, dtype, 7));
                assert_ne!(bytes, tiny_model(family, dtype, 8));
                let gguf = Gguf::parse(bytes.into()).expect("a valid file");
                let spec = ModelSpec::from_gguf(&gguf).expect("a valid spec");
                assert_eq!(spec, tiny_spec(family));
                let tokens = gguf
                    .header()
                    .metadata
                    .strings("tokenizer.ggml.tokens")
                    .expect("tokens");
                assert_eq!(tokens.len(), spec.vocab_size);
                let mut unique: Vec<_> = tokens.iter().collect();
                unique.sort_unstable();
                unique.dedup();
                assert_eq!(unique.len(), tokens.len());
            }
        }
    }
}
