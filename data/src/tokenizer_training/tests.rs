use super::*;
use crate::{control::Quiet, document::Body, encode::Encoder};
use proptest::prelude::*;
use std::{str::FromStr, sync::LazyLock};

const TEXTS: [&str; 4] = [
    "The cat sat on the mat, and the dog didn't. They'll eat 1234 apples; she's eaten 56.\n\n\tdef cat(x):\n        return x  # cat\n",
    "Die Katze saß auf der Matte, während der Hund schläft. Größe: 12,5 m². Ça va très bien, naïveté!",
    "猫が座った。犬は座らなかった。한국어 텍스트. Кошка сидела на коврике. कुत्ता 🐱🐶👩‍👩‍👧 \u{a0}\u{2003}x",
    "the the the cat cat cat   sat   sat \r\n\r\n the the",
];

fn texts() -> impl Iterator<Item = Result<String>> + Send {
    TEXTS
        .into_iter()
        .cycle()
        .take(12)
        .map(|text| Ok(text.to_owned()))
}

fn options(vocab_size: usize) -> Options {
    Options {
        vocab_size,
        ..Options::default()
    }
}

static TRAINED: LazyLock<(Trained, Tokenizer, tokenizers::Tokenizer)> = LazyLock::new(|| {
    let options = Options {
        specials: vec![END_OF_TEXT.to_owned(), "<|im_end|>".to_owned()],
        ..options(450)
    };
    let trained = train(texts(), &options, &Quiet).unwrap();
    let ours = trained.tokenizer().unwrap();
    let theirs = tokenizers::Tokenizer::from_str(&trained.tokenizer_json).unwrap();
    (trained, ours, theirs)
});

fn check_ids(text: &str) {
    let (_, ours, theirs) = &*TRAINED;
    let ids = ours.encode(text, false, true);
    assert_eq!(
        theirs.encode(text, false).unwrap().get_ids(),
        ids,
        "{text:?}"
    );
    assert_eq!(ours.decode(&ids, false), text);
}

#[test]
fn our_ids_are_those_of_the_crate_that_trained() {
    for text in TEXTS {
        check_ids(text);
    }
    check_ids("a<|endoftext|>b<|im_end|> <|im_start|>\u{0}\u{7f}");
}

/// Mixed scripts, spaces and what the pattern treats apart, and some of the known words.
fn mixed() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        prop::sample::select(vec![
            " the",
            "cat",
            "didn't",
            "'ll",
            "<|endoftext|>",
            "  ",
            "\r\n",
            "\t",
            "12",
            "é",
            "猫",
            "🐱"
        ])
        .prop_map(str::to_owned),
        "\\PC{0,6}",
        any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn our_ids_are_those_of_the_crate_on_any_text(text in mixed()) {
        check_ids(&text);
    }
}

#[test]
fn a_tokenizer_has_its_size_its_bytes_and_its_end() {
    let (trained, ours, _) = &*TRAINED;
    assert_eq!((trained.vocab_size, ours.vocab_size()), (450, 450));
    assert_eq!(ours.eos(), ours.token_id(END_OF_TEXT));
    assert_eq!(
        (ours.token_id(END_OF_TEXT), ours.token_id("<|im_end|>")),
        (Some(0), Some(1))
    );
    assert!(!ours.adds_bos());
    for byte in 0..=255_u8 {
        assert!((0..450).any(|id| ours.token_bytes(id) == [byte]));
    }
    assert!(ours.token_id("Ġthe").is_some());
}

#[test]
fn the_same_texts_give_the_same_tokenizer() {
    let trained = train(texts(), &options(500), &Quiet).unwrap();
    for _ in 0..3 {
        assert_eq!(train(texts(), &options(500), &Quiet).unwrap(), trained);
    }
}

#[test]
fn what_is_written_is_a_tokenizer_to_prepare_data_with() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("a/b");
    let options = Options {
        specials: vec!["<stop>".to_owned()],
        ..options(300)
    };
    let trained = train(texts(), &options, &Quiet).unwrap();
    trained.write(&folder).unwrap();
    trained.write(&folder).unwrap();
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
    let encoder = Encoder::from_tokenizer_json(&folder.join("tokenizer.json")).unwrap();
    assert_eq!(encoder.eos(), encoder.tokenizer().token_id("<stop>"));
    let encoded = encoder.encode(&Body::Text("the cat".to_owned())).unwrap();
    assert_eq!(encoded.tokens.last().copied(), encoder.eos());
}

#[test]
fn few_texts_give_fewer_tokens_and_none_are_an_error() {
    let trained = train(texts().skip(3).take(1), &options(5000), &Quiet).unwrap();
    assert!(
        (260..300).contains(&trained.vocab_size),
        "{}",
        trained.vocab_size
    );
    let error = |texts: Vec<Result<String>>, options: &Options| {
        train(texts.into_iter(), options, &Quiet)
            .unwrap_err()
            .to_string()
    };
    assert!(error(vec![], &options(300)).contains("no text"));
    assert!(error(vec![Ok(String::new())], &options(300)).contains("no text"));
    let broken = || vec![Ok("a".to_owned()), Err(anyhow::anyhow!("broken"))];
    assert_eq!(error(broken(), &options(300)), "broken");
    assert!(error(broken(), &options(256)).contains("257"));
    let with_specials = |specials: &[&str]| Options {
        specials: specials.iter().map(ToString::to_string).collect(),
        ..options(300)
    };
    assert!(error(broken(), &with_specials(&[])).contains("special tokens"));
    assert!(error(broken(), &with_specials(&["ab", "ab"])).contains("special tokens"));
    assert!(error(broken(), &with_specials(&["a"])).contains("two characters"));
    let too_much = Options {
        max_bytes: 1 << 40,
        ..options(300)
    };
    assert!(error(broken(), &too_much).contains("2147483647"));
}

#[test]
fn a_limit_is_kept() {
    let limited = Options {
        max_bytes: 200,
        total_bytes: Some(texts().map(|text| text.unwrap().len() as u64).sum()),
        ..options(300)
    };
    let trained = train(texts(), &limited, &Quiet).unwrap();
    assert_eq!(Some(trained.seen_bytes), limited.total_bytes);
    assert!(
        (100..=200).contains(&trained.used_bytes),
        "{}",
        trained.used_bytes
    );
}

#[test]
fn figures_of_a_tokenizer() {
    let (_, ours, _) = &*TRAINED;
    let texts = || {
        ["the cat the", "\u{1}\u{2} the"]
            .into_iter()
            .map(|text| Ok(text.to_owned()))
    };
    let report = report(ours, texts(), &Quiet).unwrap();
    assert_eq!((report.texts, report.bytes, report.words), (2, 17, 5));
    // the, Ġcat, Ġthe; two bytes, Ġthe
    assert_eq!(report.tokens, 6);
    assert!((report.bytes_per_token - 17.0 / 6.0).abs() < 1e-12);
    assert!((report.tokens_per_word - 1.2).abs() < 1e-12);
    assert!((report.single_byte_share - 2.0 / 6.0).abs() < 1e-12);
    assert_eq!((report.used_tokens, report.vocab_size), (5, 450));
    assert_eq!(
        (report.longest[0].text.as_str(), report.longest.len()),
        (" the", 5)
    );
    let none = super::report(ours, std::iter::empty(), &Quiet).unwrap();
    assert_eq!((none.tokens, none.longest.len()), (0, 0));
    assert!(none.bytes_per_token.abs() < 1e-12);
}
