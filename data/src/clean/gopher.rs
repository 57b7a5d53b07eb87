//! Rules by which prose is told from lists, tables, spam and boilerplate.
//!
//! Rae et al., "Scaling Language Models: Methods, Analysis & Insights from Training Gopher" (2021), appendix A.1.1: quality
//! filtering, and repetition removal with the thresholds of table A1. Words are what stands between white space; shares of
//! characters in runs of words are of the characters of all words.

use super::Reason;
use crate::words::each_gram;
use std::collections::HashSet;
use xxhash_rust::xxh3::xxh3_64;

/// Fewest and most words.
const WORDS: (usize, usize) = (50, 100_000);
/// Shortest and longest mean of characters in a word.
const WORD_LEN: (f64, f64) = (3.0, 10.0);
/// Hash signs, or ellipses, for each word at most.
const SYMBOLS: f64 = 0.1;
/// Share of lines that begin with a bullet, at most.
const BULLETS: f64 = 0.9;
/// Share of lines that end with an ellipsis, at most.
const ELLIPSES: f64 = 0.3;
/// Share of words with a letter, at least.
const LETTERS: f64 = 0.8;
const STOP_WORDS: [&str; 8] = ["the", "be", "to", "of", "and", "that", "have", "with"];
/// Different stop words at least.
const N_STOP_WORDS: usize = 2;
/// Share of lines, and of paragraphs, that stood before, and of the characters in them.
const REPEATED: (f64, f64) = (0.3, 0.2);
/// Share of characters in the most frequent run of so many words.
const TOP: [(usize, f64); 3] = [(2, 0.20), (3, 0.18), (4, 0.16)];
/// Share of characters in runs of so many words that occur more than once.
const DUPLICATE: [(usize, f64); 6] = [
    (5, 0.15),
    (6, 0.14),
    (7, 0.13),
    (8, 0.12),
    (9, 0.11),
    (10, 0.10),
];

/// The first rule that the text breaks.
pub(super) fn judge(text: &str) -> Option<Reason> {
    let words: Vec<&str> = text.split_whitespace().collect();
    of_words(&words)
        .or_else(|| of_symbols(text, words.len()))
        .or_else(|| of_lines(text))
        .or_else(|| of_stop_words(&words))
        .or_else(|| of_repeated_pieces(text))
        .or_else(|| of_runs(&words))
}

fn share(part: usize, whole: usize) -> f64 {
    part as f64 / whole.max(1) as f64
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn of_words(words: &[&str]) -> Option<Reason> {
    let n = words.len();
    if n < WORDS.0 {
        return Some((
            "gopher.words",
            format!("{n} words are fewer than {}", WORDS.0),
        ));
    }
    if n > WORDS.1 {
        return Some((
            "gopher.words",
            format!("{n} words are more than {}", WORDS.1),
        ));
    }
    let mean = share(words.iter().map(|word| word.chars().count()).sum(), n);
    let (least, most) = WORD_LEN;
    let side = match mean {
        mean if mean < least => format!("under {least}"),
        mean if mean > most => format!("over {most}"),
        _ => String::new(),
    };
    if !side.is_empty() {
        return Some((
            "gopher.word_length",
            format!("mean word length {mean:.1} is {side}"),
        ));
    }
    let with_letter = share(
        words
            .iter()
            .filter(|word| word.contains(char::is_alphabetic))
            .count(),
        n,
    );
    (with_letter < LETTERS).then(|| {
        let why = format!(
            "{} of words with a letter are under {}",
            percent(with_letter),
            percent(LETTERS)
        );
        ("gopher.letters", why)
    })
}

fn of_symbols(text: &str, n_words: usize) -> Option<Reason> {
    let n_hashes = text.matches('#').count();
    let n_ellipses = text.matches("...").count() + text.matches('…').count();
    [(n_hashes, "hash signs"), (n_ellipses, "ellipses")]
        .into_iter()
        .find_map(|(n, name)| {
            let ratio = share(n, n_words);
            let why = || format!("{ratio:.2} {name} for each word are over {SYMBOLS}");
            (ratio > SYMBOLS).then(|| ("gopher.symbols", why()))
        })
}

fn of_lines(text: &str) -> Option<Reason> {
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    let n = lines().count();
    let is_bullet = |line: &&str| {
        line.starts_with(['•', '‣', '◦', '▪', '●'])
            || line.starts_with("- ")
            || line.starts_with("* ")
    };
    let bullets = share(lines().filter(is_bullet).count(), n);
    if bullets > BULLETS {
        let why = format!(
            "{} of lines begin with a bullet, over {}",
            percent(bullets),
            percent(BULLETS)
        );
        return Some(("gopher.bullets", why));
    }
    let is_cut = |line: &&str| line.ends_with("...") || line.ends_with('…');
    let cut = share(lines().filter(is_cut).count(), n);
    (cut > ELLIPSES).then(|| {
        let why = format!(
            "{} of lines end with an ellipsis, over {}",
            percent(cut),
            percent(ELLIPSES)
        );
        ("gopher.ellipses", why)
    })
}

fn of_stop_words(words: &[&str]) -> Option<Reason> {
    let bare = |word: &&str| word.trim_matches(|c: char| !c.is_alphanumeric()).len();
    let is_there = |stop: &&&str| {
        words
            .iter()
            .filter(|word| bare(word) == stop.len())
            .any(|word| {
                word.trim_matches(|c: char| !c.is_alphanumeric())
                    .eq_ignore_ascii_case(stop)
            })
    };
    let n = STOP_WORDS
        .iter()
        .filter(is_there)
        .take(N_STOP_WORDS)
        .count();
    (n < N_STOP_WORDS).then(|| {
        let why = format!(
            "{n} of the stop words {} are fewer than {N_STOP_WORDS}",
            STOP_WORDS.join("/")
        );
        ("gopher.stop_words", why)
    })
}

fn of_repeated_pieces(text: &str) -> Option<Reason> {
    let (most, most_chars) = REPEATED;
    [("lines", "\n"), ("paragraphs", "\n\n")]
        .into_iter()
        .find_map(|(name, between)| {
            let mut seen = HashSet::new();
            let (mut n, mut n_repeated, mut n_chars, mut n_repeated_chars) = (0, 0, 0, 0);
            for piece in text
                .split(between)
                .map(str::trim)
                .filter(|piece| !piece.is_empty())
            {
                let len = piece.chars().count();
                n += 1;
                n_chars += len;
                if !seen.insert(piece) {
                    n_repeated += 1;
                    n_repeated_chars += len;
                }
            }
            let (pieces, chars) = (share(n_repeated, n), share(n_repeated_chars, n_chars));
            let why = |share, what, most| {
                format!(
                    "{} of {what} stand in {name} that stood before, over {}",
                    percent(share),
                    percent(most)
                )
            };
            if pieces > most {
                return Some(("gopher.repetition", why(pieces, name, most)));
            }
            (chars > most_chars)
                .then(|| ("gopher.repetition", why(chars, "characters", most_chars)))
        })
}

fn of_runs(words: &[&str]) -> Option<Reason> {
    let hashes: Vec<u64> = words.iter().map(|word| xxh3_64(word.as_bytes())).collect();
    let lens: Vec<usize> = words.iter().map(|word| word.chars().count()).collect();
    let n_chars = lens.iter().sum();
    let why = |share, what: &str, n, most| {
        format!(
            "{} of characters stand in {what} of {n} words, over {}",
            percent(share),
            percent(most)
        )
    };
    let top = |&(n, most): &(usize, f64)| {
        let share = share(chars_in_top_run(&hashes, &lens, n), n_chars);
        (share > most).then(|| why(share, "the most frequent run", n, most))
    };
    let duplicate = |&(n, most): &(usize, f64)| {
        let share = share(chars_in_repeated_runs(&hashes, &lens, n), n_chars);
        (share > most).then(|| why(share, "repeated runs", n, most))
    };
    let reason = TOP.iter().find_map(top);
    let reason = reason.or_else(|| DUPLICATE.iter().find_map(duplicate));
    reason.map(|why| ("gopher.repetition", why))
}

/// The runs of `n` words with where each begins, equal ones one after the other.
fn runs(hashes: &[u64], n: usize) -> Vec<(u64, usize)> {
    let mut runs = Vec::with_capacity(hashes.len());
    each_gram(hashes, n, |hash| runs.push((hash, runs.len())));
    runs.sort_unstable();
    runs
}

fn chars_in_top_run(hashes: &[u64], lens: &[usize], n: usize) -> usize {
    let runs = runs(hashes, n);
    let of = |equal: &[(u64, usize)]| {
        let start = equal[0].1;
        (equal.len(), lens[start..start + n].iter().sum::<usize>())
    };
    let equal = runs
        .chunk_by(|a, b| a.0 == b.0)
        .filter(|equal| equal.len() > 1);
    equal.map(of).max().map_or(0, |(count, len)| count * len)
}

/// Characters that several runs share count once.
fn chars_in_repeated_runs(hashes: &[u64], lens: &[usize], n: usize) -> usize {
    let mut is_in = vec![false; hashes.len()];
    for equal in runs(hashes, n).chunk_by(|a, b| a.0 == b.0) {
        for (_, start) in equal.iter().filter(|_| equal.len() > 1) {
            is_in[*start..start + n].fill(true);
        }
    }
    let marked = lens.iter().zip(is_in).filter(|(_, is_in)| *is_in);
    marked.map(|(len, _)| len).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prose in which no run of words repeats: numbers in words of a made-up language, with stop words.
    fn prose(n: usize) -> String {
        let word = |i: usize| match i % 9 {
            0 => "the".to_owned(),
            4 => "and".to_owned(),
            _ => format!("w{}", crate::words::mix(i as u64) % 100_000),
        };
        let words: Vec<String> = (0..n).map(word).collect();
        let lines: Vec<String> = words.chunks(12).map(|line| line.join(" ")).collect();
        lines.join("\n")
    }

    fn step_and_why(text: &str) -> (&'static str, String) {
        judge(text).expect("it is dropped")
    }

    #[test]
    fn prose_stays() {
        assert_eq!(judge(&prose(60)), None);
        assert_eq!(judge(&prose(5000)), None);
    }

    #[test]
    fn too_few_and_too_many_words_go() {
        assert_eq!(judge(&prose(50)), None);
        let few = step_and_why(&prose(49));
        assert_eq!(few, ("gopher.words", "49 words are fewer than 50".into()));
        let many = step_and_why(&"a ".repeat(100_001));
        assert_eq!(many.1, "100001 words are more than 100000");
    }

    #[test]
    fn words_that_are_too_short_or_too_long_go() {
        let long = prose(60).replace('w', "veryveryverylong");
        let (step, why) = step_and_why(&long);
        assert_eq!(step, "gopher.word_length");
        assert!(
            why.starts_with("mean word length 1") && why.ends_with("is over 10"),
            "{why}"
        );
        let short = "1 2 3 4 5 6 ".repeat(10);
        assert_eq!(step_and_why(&short).1, "mean word length 1.0 is under 3");
    }

    #[test]
    fn symbols_and_numbers_go() {
        let text = prose(80);
        assert_eq!(
            judge(&text.replacen('w', "#w", 8)),
            None,
            "8 of 80 are not over a tenth"
        );
        let hashes = step_and_why(&text.replacen('w', "#w", 9));
        assert_eq!(
            hashes,
            (
                "gopher.symbols",
                "0.11 hash signs for each word are over 0.1".into()
            )
        );
        assert!(
            step_and_why(&text.replacen('w', "…w", 9))
                .1
                .contains("ellipses")
        );
        assert_eq!(
            step_and_why(&text.replacen('w', "", 17)).0,
            "gopher.letters"
        );
    }

    #[test]
    fn lists_and_cut_lines_go() {
        let text = prose(120);
        let bullets = format!("- {}", text.replace('\n', "\n- "));
        let (step, why) = step_and_why(&bullets);
        assert_eq!(
            (step, why.as_str()),
            (
                "gopher.bullets",
                "100.0 % of lines begin with a bullet, over 90.0 %"
            )
        );
        let nine_of_ten = bullets.replacen("- ", "", 1);
        assert_eq!(judge(&nine_of_ten), None);
        let cut = text.replacen('\n', "...\n", 4);
        assert_eq!(step_and_why(&cut).0, "gopher.ellipses");
        assert_eq!(judge(&text.replacen('\n', "...\n", 3)), None);
    }

    #[test]
    fn text_without_stop_words_goes() {
        let text = prose(120).replace("and", "xxx");
        let (step, why) = step_and_why(&text);
        assert_eq!(step, "gopher.stop_words");
        assert!(why.starts_with("1 of the stop words the/be/to"), "{why}");
        assert_eq!(
            judge(&text.replacen("xxx", "(With,", 1)),
            None,
            "case and punctuation do not count"
        );
    }

    #[test]
    fn repeated_lines_and_paragraphs_go() {
        let text = prose(240);
        let line = text.lines().next().unwrap();
        let repeated = format!("{text}\n{}", format!("{line}\n").repeat(9));
        let why = step_and_why(&repeated).1;
        assert_eq!(
            why,
            "31.0 % of lines stand in lines that stood before, over 30.0 %"
        );
        let long = format!("{text}\n{}\n{0}", prose(70).replace('\n', " "));
        let long = format!("{long}\n{}", prose(70).replace('\n', " "));
        assert!(
            step_and_why(&long)
                .1
                .contains("of characters stand in lines")
        );
        let paragraphs = format!("{}\n\n{0}\n\n{0}", "one line\nand more");
        assert!(of_repeated_pieces(&paragraphs).is_some());
    }

    #[test]
    fn repeated_runs_of_words_go() {
        let mut words: Vec<String> = prose(300).split_whitespace().map(str::to_owned).collect();
        for i in (0..270).step_by(9) {
            words[i + 1] = "buynow".into();
            words[i + 2] = "cheapest".into();
        }
        let why = step_and_why(&words.join(" ")).1;
        assert!(
            why.contains("the most frequent run of 2 words, over 20.0 %"),
            "{why}"
        );
        let text = prose(300).replace('\n', " ");
        let half: Vec<&str> = text.split(' ').take(30).collect();
        let twice = format!("{text} {}", half.join(" "));
        assert!(
            step_and_why(&twice)
                .1
                .contains("repeated runs of 5 words, over 15.0 %")
        );
        let words: Vec<&str> = "a b c d e x a b c d e".split(' ').collect();
        let hashes: Vec<u64> = words.iter().map(|word| xxh3_64(word.as_bytes())).collect();
        assert_eq!(chars_in_repeated_runs(&hashes, &[1; 11], 5), 10);
        assert_eq!(
            chars_in_repeated_runs(&hashes, &[1; 11], 4),
            10,
            "overlaps count once"
        );
        assert_eq!(chars_in_top_run(&hashes, &[1; 11], 2), 4);
    }
}
