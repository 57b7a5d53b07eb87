//! The Hugging Face `tokenizer.json`: what the `tokenizers` library writes, read without it.
//!
//! A component that is not known exactly is an error that names it: running something alike would give wrong ids.

use super::{
    AddedToken, Alphabet, Definition, END_TEXTS, Kind, Merges, Metaspace, NONE, Normalize,
    SPACE_MARK, SpecialIds, Step, Tokenizer, TokenizerError, Unknown, Vocab, byte_token,
    ggml::{byte_alphabet, byte_tokens},
};
use serde::{Deserialize, Deserializer, de};
use serde_json::Value;
use std::{borrow::Cow, fmt};

pub(super) fn read(json: &[u8], config: Option<&[u8]>) -> Result<Tokenizer, TokenizerError> {
    let text =
        std::str::from_utf8(json).map_err(|error| TokenizerError::Json(error.to_string()))?;
    let file: File =
        serde_json::from_str(text).map_err(|error| TokenizerError::Json(error.to_string()))?;
    let config = match config {
        None => Config::default(),
        Some(bytes) => serde_json::from_slice(bytes)
            .map_err(|error| TokenizerError::Json(format!("tokenizer_config.json: {error}")))?,
    };
    let mut def = definition(file, &config)?;
    def.hf_json = Some(text.into());
    Ok(def.into())
}

#[derive(Deserialize)]
struct File<'a> {
    #[serde(default)]
    added_tokens: Vec<FileToken>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(borrow)]
    model: Model<'a>,
}

#[derive(Deserialize)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "tokenizer.json's own independent flags"
)]
struct FileToken {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Model<'a> {
    /// Absent in old files, which are BPE when they have merges.
    #[serde(rename = "type")]
    kind: Option<String>,
    dropout: Option<f64>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    fuse_unk: Option<bool>,
    byte_fallback: Option<bool>,
    ignore_merges: Option<bool>,
    #[serde(borrow, default)]
    vocab: VocabMap<'a>,
    #[serde(borrow)]
    merges: Option<Vec<Pair<'a>>>,
}

/// A string that is borrowed from the file where it has no escapes.
#[derive(Clone)]
struct Text<'a>(Cow<'a, str>);

struct TextVisitor;
impl<'de> de::Visitor<'de> for TextVisitor {
    type Value = Text<'de>;
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a string")
    }
    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
        Ok(Text(Cow::Borrowed(text)))
    }
    fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
        Ok(Text(Cow::Owned(text.to_owned())))
    }
}
impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor)
    }
}

/// `{"token": id}`; other models keep lists, which are passed over here so that the model's type can be reported.
#[derive(Default)]
struct VocabMap<'a>(Vec<(Text<'a>, u32)>);

struct VocabVisitor;
impl<'de> de::Visitor<'de> for VocabVisitor {
    type Value = VocabMap<'de>;
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a map from token to id")
    }
    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<VocabMap<'de>, A::Error> {
        let mut tokens = Vec::new();
        while let Some(entry) = map.next_entry()? {
            tokens.push(entry);
        }
        Ok(VocabMap(tokens))
    }
    fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<VocabMap<'de>, A::Error> {
        while seq.next_element::<de::IgnoredAny>()?.is_some() {}
        Ok(VocabMap::default())
    }
}
impl<'de: 'a, 'a> Deserialize<'de> for VocabMap<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(VocabVisitor)
    }
}

/// A merge: `["a", "b"]`, or `"a b"` in files from before tokens could hold spaces.
struct Pair<'a>(Text<'a>, Text<'a>);

struct PairVisitor;
impl<'de> de::Visitor<'de> for PairVisitor {
    type Value = Pair<'de>;
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a merge: two tokens in a list, or in a string with one space between")
    }
    fn visit_borrowed_str<E: de::Error>(self, line: &'de str) -> Result<Pair<'de>, E> {
        let (left, right) = split_legacy(line)?;
        Ok(Pair(Text(left.into()), Text(right.into())))
    }
    fn visit_str<E: de::Error>(self, line: &str) -> Result<Pair<'de>, E> {
        let (left, right) = split_legacy(line)?;
        Ok(Pair(
            Text(left.to_owned().into()),
            Text(right.to_owned().into()),
        ))
    }
    fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Pair<'de>, A::Error> {
        let (left, right) = (seq.next_element()?, seq.next_element()?);
        match (left, right, seq.next_element::<de::IgnoredAny>()?) {
            (Some(left), Some(right), None) => Ok(Pair(left, right)),
            _ => Err(de::Error::invalid_length(3, &self)),
        }
    }
}
impl<'de: 'a, 'a> Deserialize<'de> for Pair<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PairVisitor)
    }
}

fn split_legacy<E: de::Error>(line: &str) -> Result<(&str, &str), E> {
    let pair = line
        .split_once(' ')
        .filter(|(_, right)| !right.contains(' '));
    pair.ok_or_else(|| {
        E::custom(format_args!(
            "the merge {line:?} is not two tokens with one space between"
        ))
    })
}

/// What matters of `tokenizer_config.json`.
#[derive(Default, Deserialize)]
#[serde(default)]
#[allow(clippy::struct_field_names, reason = "the file's own names")]
struct Config {
    bos_token: Option<ConfigToken>,
    eos_token: Option<ConfigToken>,
    unk_token: Option<ConfigToken>,
    pad_token: Option<ConfigToken>,
    add_bos_token: Option<bool>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ConfigToken {
    Text(String),
    Token { content: String },
}

impl ConfigToken {
    fn text(&self) -> &str {
        let (Self::Text(text) | Self::Token { content: text }) = self;
        text
    }
}

fn definition(file: File, config: &Config) -> Result<Definition, TokenizerError> {
    check_model(&file.model)?;
    let vocab = vocab(&file)?;
    let mut kinds = vec![Kind::Normal; vocab.len()];
    let added = added_tokens(file.added_tokens, &file.model.vocab, &vocab, &mut kinds)?;
    let pairs = file.model.merges.unwrap_or_default();
    let merges = Merges::new(&vocab, pairs.iter().map(|pair| (&*pair.0.0, &*pair.1.0)))?;

    let mut cut = Cutting::default();
    cut.read(&file.pre_tokenizer)?;
    let unknown = Unknown {
        id: known(&vocab, "unk_token", file.model.unk_token.as_deref())?,
        fuse: file.model.fuse_unk.unwrap_or(false),
    };
    let byte_fallback = file.model.byte_fallback.unwrap_or(false);
    let alphabet = if cut.byte_level {
        Alphabet::Bytes(byte_alphabet(&vocab), unknown)
    } else if byte_fallback {
        Alphabet::Chars(byte_tokens(&vocab), unknown)
    } else {
        Alphabet::Chars(Box::new([NONE; 256]), unknown)
    };
    mark_kinds(&mut kinds, &vocab, byte_fallback);
    let decoding = decoding(&file.decoder, cut.byte_level)?;
    let first = first_added(&file.post_processor)?;
    let special = special_ids(&vocab, &kinds, config, unknown, first.as_deref())?;
    let mut normalizer = Vec::new();
    read_normalizer(&file.normalizer, &mut normalizer)?;
    Ok(Definition {
        merges,
        alphabet,
        ignore_merges: file.model.ignore_merges.unwrap_or(false),
        normalizer,
        metaspace: cut.metaspace,
        steps: cut.steps,
        added,
        strip_leading_space: decoding,
        adds_bos: special.bos.is_some() && config.add_bos_token.unwrap_or(first.is_some()),
        special,
        scores: Vec::new(),
        hf_json: None,
        kinds,
        vocab,
    })
}

fn check_model(model: &Model) -> Result<(), TokenizerError> {
    let unsupported = |what: String| Err(TokenizerError::Unsupported(what));
    match model.kind.as_deref() {
        Some("BPE") => {}
        None if model.merges.is_some() => {}
        Some(other) => return unsupported(format!("the model `{other}` (this build runs `BPE`)")),
        None => return unsupported("a model without a type".into()),
    }
    if model.dropout.is_some_and(|dropout| dropout != 0.0) {
        return unsupported("BPE dropout, which makes ids random".into());
    }
    let parts = [
        (
            "continuing_subword_prefix",
            &model.continuing_subword_prefix,
        ),
        ("end_of_word_suffix", &model.end_of_word_suffix),
    ];
    match parts
        .into_iter()
        .find(|(_, value)| value.as_deref().is_some_and(|text| !text.is_empty()))
    {
        Some((name, _)) => unsupported(format!("the BPE option `{name}`")),
        None => Ok(()),
    }
}

/// The texts by id: the model's, then the added tokens that it lacks.
fn vocab(file: &File) -> Result<Vocab, TokenizerError> {
    let model = &file.model.vocab.0;
    let added = file
        .added_tokens
        .iter()
        .map(|token| (token.content.as_str(), token.id));
    let all = || {
        model
            .iter()
            .map(|(text, id)| (&*text.0, *id))
            .chain(added.clone())
    };
    let n_ids = all().map(|(_, id)| id as usize + 1).max().unwrap_or(0);
    // Ids may leave gaps, but a few entries must not cost gigabytes.
    if n_ids > 2 * (model.len() + file.added_tokens.len()) + 65_536 {
        return Err(TokenizerError::TooLarge {
            what: "ids for its few tokens",
            count: n_ids,
        });
    }
    let mut texts = vec![""; n_ids];
    for (text, id) in all() {
        let slot = &mut texts[id as usize];
        if !slot.is_empty() && *slot != text {
            return Err(TokenizerError::Json(format!(
                "the id {id} stands for {slot:?} and for {text:?}"
            )));
        }
        *slot = text;
    }
    Vocab::new(texts.into_iter())
}

/// The library gives added tokens that the model lacks the next free ids, whatever the file says; a file where that
/// differs would give other ids there than here.
fn added_tokens(
    tokens: Vec<FileToken>,
    model: &VocabMap,
    vocab: &Vocab,
    kinds: &mut [Kind],
) -> Result<Vec<AddedToken>, TokenizerError> {
    let mut in_model = vec![false; vocab.len()];
    for (_, id) in &model.0 {
        in_model[*id as usize] = true;
    }
    let mut next_id = model.0.len();
    let mut added = Vec::with_capacity(tokens.len());
    for token in tokens.into_iter().filter(|token| !token.content.is_empty()) {
        if !in_model[token.id as usize] {
            if token.id as usize != next_id {
                let what = format!(
                    "the added token {:?} has the id {}, the next free one is {next_id}",
                    token.content, token.id
                );
                return Err(TokenizerError::Json(what));
            }
            next_id += 1;
        }
        kinds[token.id as usize] = if token.special {
            Kind::Control
        } else {
            Kind::UserDefined
        };
        let FileToken {
            id,
            content,
            single_word,
            lstrip,
            rstrip,
            normalized,
            special,
        } = token;
        added.push(AddedToken {
            id,
            content,
            single_word,
            lstrip,
            rstrip,
            normalized,
            special,
        });
    }
    Ok(added)
}

fn mark_kinds(kinds: &mut [Kind], vocab: &Vocab, byte_fallback: bool) {
    for (id, kind) in kinds.iter_mut().enumerate() {
        let text = vocab.text(id as u32).unwrap_or_default();
        if text.is_empty() {
            *kind = Kind::Unused;
        } else if byte_fallback && *kind == Kind::Normal && byte_token(text).is_some() {
            *kind = Kind::Byte;
        }
    }
}

fn known(vocab: &Vocab, what: &str, text: Option<&str>) -> Result<Option<u32>, TokenizerError> {
    let Some(text) = text else { return Ok(None) };
    let id = vocab.id(text.as_bytes());
    id.map(Some).ok_or_else(|| {
        TokenizerError::Json(format!("the {what} {text:?} is not in the vocabulary"))
    })
}

fn special_ids(
    vocab: &Vocab,
    kinds: &[Kind],
    config: &Config,
    unknown: Unknown,
    first: Option<&str>,
) -> Result<SpecialIds, TokenizerError> {
    let id = |what, token: &Option<ConfigToken>| {
        known(vocab, what, token.as_ref().map(ConfigToken::text))
    };
    let control = |text: &str| {
        vocab
            .id(text.as_bytes())
            .filter(|&id| kinds[id as usize] == Kind::Control)
    };
    Ok(SpecialIds {
        bos: id("bos_token", &config.bos_token)?.or(known(vocab, "begin token", first)?),
        eos: id("eos_token", &config.eos_token)?
            .or_else(|| END_TEXTS.into_iter().find_map(control)),
        eot: None,
        eom: None,
        unknown: id("unk_token", &config.unk_token)?.or(unknown.id),
        padding: id("pad_token", &config.pad_token)?,
    })
}

/// A component's `type` and the list of a `Sequence`'s parts, or itself as the only part.
fn parts<'a>(
    component: &'a Value,
    list: &str,
) -> Result<Vec<(&'a str, &'a Value)>, TokenizerError> {
    let Some(kind) = component.get("type").and_then(Value::as_str) else {
        return if component.is_null() {
            Ok(Vec::new())
        } else {
            Err(unsupported(component))
        };
    };
    if kind != "Sequence" {
        return Ok(vec![(kind, component)]);
    }
    let children = component
        .get(list)
        .and_then(Value::as_array)
        .ok_or_else(|| unsupported(component))?;
    let mut all = Vec::new();
    for child in children {
        if child.get("type").and_then(Value::as_str) == Some("Sequence") {
            return Err(TokenizerError::Unsupported(
                "a `Sequence` within a `Sequence`".into(),
            ));
        }
        all.extend(parts(child, list)?);
    }
    Ok(all)
}

/// Names a component by what the file says, shortened.
fn unsupported(component: &Value) -> TokenizerError {
    let mut text: String = component.to_string().chars().take(300).collect();
    if text.len() < component.to_string().len() {
        text.push('…');
    }
    TokenizerError::Unsupported(format!("the component `{text}`"))
}

fn flag(component: &Value, name: &str, default: bool) -> bool {
    component
        .get(name)
        .and_then(Value::as_bool)
        .unwrap_or(default)
}

/// How the pre-tokenizer cuts.
#[derive(Default)]
struct Cutting {
    steps: Vec<Step>,
    metaspace: Option<Metaspace>,
    byte_level: bool,
}

impl Cutting {
    fn read(&mut self, pre_tokenizer: &Value) -> Result<(), TokenizerError> {
        for (kind, part) in parts(pre_tokenizer, "pretokenizers")? {
            // ByteLevel rewrites the text, so what follows it would see other characters.
            if self.byte_level {
                return Err(TokenizerError::Unsupported(format!(
                    "a pre-tokenizer after `ByteLevel` (`{kind}`)"
                )));
            }
            match kind {
                "ByteLevel" => {
                    self.byte_level = true;
                    self.steps
                        .extend(flag(part, "add_prefix_space", true).then_some(Step::PrefixSpace));
                    self.steps
                        .extend(flag(part, "use_regex", true).then_some(Step::Gpt2));
                }
                "Digits" => self.steps.push(if flag(part, "individual_digits", false) {
                    Step::EachDigit
                } else {
                    Step::DigitRuns
                }),
                "Split" => self
                    .steps
                    .push(split_step(part).ok_or_else(|| unsupported(part))?),
                "Metaspace" if self.steps.is_empty() && self.metaspace.is_none() => {
                    self.metaspace = Some(metaspace(part).ok_or_else(|| unsupported(part))?);
                    self.steps
                        .extend(flag(part, "split", true).then_some(Step::BeforeSpaceMark));
                }
                _ => return Err(unsupported(part)),
            }
        }
        Ok(())
    }
}

fn split_step(split: &Value) -> Option<Step> {
    let step = Step::of_pattern(split.get("pattern")?.get("Regex")?.as_str()?)?;
    match (
        split.get("behavior")?.as_str()?,
        flag(split, "invert", false),
    ) {
        ("Isolated", _) => Some(step),
        // What does not match is removed: nothing, when the pattern matches everything.
        ("Removed", true) if step.covers_all() => Some(step),
        _ => None,
    }
}

fn metaspace(part: &Value) -> Option<Metaspace> {
    if part.get("replacement")?.as_str()? != SPACE_MARK.encode_utf8(&mut [0; 4]) {
        return None;
    }
    match part.get("prepend_scheme").and_then(Value::as_str) {
        Some("first") => Some(Metaspace::First),
        Some("never") => Some(Metaspace::Never),
        Some("always") => Some(Metaspace::Always),
        Some(_) => None,
        None => Some(if flag(part, "add_prefix_space", true) {
            Metaspace::Always
        } else {
            Metaspace::Never
        }),
    }
}

fn read_normalizer(normalizer: &Value, out: &mut Vec<Normalize>) -> Result<(), TokenizerError> {
    for (kind, part) in parts(normalizer, "normalizers")? {
        let text = |value: Option<&Value>| {
            value
                .and_then(Value::as_str)
                .map(str::to_owned)
                .ok_or_else(|| unsupported(part))
        };
        out.push(match kind {
            "NFC" => Normalize::Nfc,
            "NFD" => Normalize::Nfd,
            "NFKC" => Normalize::Nfkc,
            "NFKD" => Normalize::Nfkd,
            "Lowercase" => Normalize::Lowercase,
            "Prepend" => Normalize::Prepend(text(part.get("prepend"))?),
            "Replace" => {
                let from = text(
                    part.get("pattern")
                        .and_then(|pattern| pattern.get("String")),
                )?;
                if from.is_empty() {
                    return Err(unsupported(part));
                }
                Normalize::Replace(from, text(part.get("content"))?)
            }
            _ => return Err(unsupported(part)),
        });
    }
    Ok(())
}

/// Whether decoding takes the leading space away. The decoders are those that belong to the two alphabets.
fn decoding(decoder: &Value, byte_level: bool) -> Result<bool, TokenizerError> {
    let parts = parts(decoder, "decoders")?;
    let kinds: Vec<_> = parts.iter().map(|(kind, _)| *kind).collect();
    let marks_become_spaces =
        |part: &Value| part["pattern"]["String"] == "▁" && part["content"] == " ";
    match kinds[..] {
        ["ByteLevel"] if byte_level => Ok(false),
        ["Replace", "ByteFallback", "Fuse"] if !byte_level && marks_become_spaces(parts[0].1) => {
            Ok(false)
        }
        ["Replace", "ByteFallback", "Fuse", "Strip"]
            if !byte_level && marks_become_spaces(parts[0].1) =>
        {
            let strip = parts[3].1;
            let strips = strip["content"] == " " && strip["stop"] == 0;
            match strip["start"].as_u64() {
                Some(count @ 0..=1) if strips => Ok(count == 1),
                _ => Err(unsupported(strip)),
            }
        }
        _ => Err(TokenizerError::Unsupported(format!(
            "the decoder {kinds:?} with {} pre-tokenizer",
            if byte_level { "a byte-level" } else { "this" }
        ))),
    }
}

/// The text of the special token that the post-processor puts first, which is BOS. What it adds at the end belongs to
/// training, not to a prompt.
fn first_added(post_processor: &Value) -> Result<Option<String>, TokenizerError> {
    let mut first = None;
    for (kind, part) in parts(post_processor, "processors")? {
        match kind {
            "ByteLevel" => {}
            "TemplateProcessing" => {
                let token = part["single"]
                    .get(0)
                    .and_then(|piece| piece["SpecialToken"]["id"].as_str());
                first = token.map(|token| {
                    part["special_tokens"][token]["tokens"][0]
                        .as_str()
                        .unwrap_or(token)
                        .to_owned()
                });
            }
            _ => return Err(unsupported(part)),
        }
    }
    Ok(first)
}
