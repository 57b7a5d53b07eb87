//! Unicode's normal forms (UAX #15), with the data of Unicode 9.0 that the Hugging Face library has through its fork of
//! `unicode-normalization`: another version would give other ids.
//!
//! The fork's own tables are 115 kB of perfect hashes; what they say fits in 25 (`normal_forms.bin`), which is unpacked when it
//! is first needed. A page downloads this.

use std::{collections::HashMap, sync::LazyLock};

/// Numbers in LEB128: the classes of combining characters in runs, then canonical decompositions, then those of
/// compatibility where they differ, both in full.
static PACKED: &[u8] = include_bytes!("normal_forms.bin");

static TABLES: LazyLock<Tables> = LazyLock::new(|| Tables::unpack(PACKED));

/// How far characters are taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decomposition {
    /// NFC and NFD.
    Canonical,
    /// NFKC and NFKD.
    Compatible,
}

/// NFD or NFKD.
pub(super) fn decompose(text: &str, kind: Decomposition) -> String {
    decomposed(text, kind).into_iter().map(|(_, c)| c).collect()
}

/// NFC or NFKC.
pub(super) fn compose(text: &str, kind: Decomposition) -> String {
    let mut out: Vec<char> = Vec::with_capacity(text.len());
    // What is composed with, by its place, and the class of the last character behind it that was not.
    let mut starter: Option<usize> = None;
    let mut last_class: Option<u8> = None;
    for (class, c) in decomposed(text, kind) {
        let is_blocked = last_class.is_some_and(|last| last >= class);
        let composed = starter
            .filter(|_| !is_blocked)
            .and_then(|at| Some((at, TABLES.compose(out[at], c)?)));
        if let Some((at, composed)) = composed {
            out[at] = composed;
            continue;
        }
        if class == 0 {
            (starter, last_class) = (Some(out.len()), None);
        } else {
            last_class = Some(class);
        }
        out.push(c);
    }
    out.into_iter().collect()
}

/// Characters taken apart, each with its class, in canonical order.
fn decomposed(text: &str, kind: Decomposition) -> Vec<(u8, char)> {
    let mut out = Vec::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii() {
            out.push((0, c));
        } else if let Some(syllable) = (c as u32).checked_sub(S_BASE).filter(|&s| s < S_COUNT) {
            let (l, v) = (syllable / N_COUNT, syllable % N_COUNT / T_COUNT);
            let t = Some(syllable % T_COUNT).filter(|&t| t > 0);
            let codes = [Some(L_BASE + l), Some(V_BASE + v), t.map(|t| T_BASE + t)];
            let jamo = codes.into_iter().flatten().filter_map(char::from_u32);
            out.extend(jamo.map(|c| (0, c)));
        } else {
            match TABLES.decomposition(c, kind) {
                Some(chars) => out.extend(chars.iter().map(|&c| (TABLES.class(c), c))),
                None => out.push((TABLES.class(c), c)),
            }
        }
    }
    for marks in out.chunk_by_mut(|a, b| a.0 != 0 && b.0 != 0) {
        marks.sort_by_key(|&(class, _)| class);
    }
    out
}

// Hangul syllables are computed (Unicode 9.0, section 3.12).
const S_BASE: u32 = 0xAC00;
const L_BASE: u32 = 0x1100;
const V_BASE: u32 = 0x1161;
const T_BASE: u32 = 0x11A7;
const L_COUNT: u32 = 19;
const V_COUNT: u32 = 21;
const T_COUNT: u32 = 28;
const N_COUNT: u32 = V_COUNT * T_COUNT;
const S_COUNT: u32 = L_COUNT * N_COUNT;

fn compose_hangul(a: char, b: char) -> Option<char> {
    let (a, b) = (a as u32, b as u32);
    let below = |code: u32, base: u32, count: u32| code.checked_sub(base).filter(|&i| i < count);
    if let (Some(l), Some(v)) = (below(a, L_BASE, L_COUNT), below(b, V_BASE, V_COUNT)) {
        return char::from_u32(S_BASE + l * N_COUNT + v * T_COUNT);
    }
    let syllable = below(a, S_BASE, S_COUNT).filter(|s| s % T_COUNT == 0)?;
    let t = below(b, T_BASE, T_COUNT).filter(|&t| t > 0)?;
    char::from_u32(S_BASE + syllable + t)
}

/// The data, unpacked.
struct Tables {
    /// First and last character of a run, and its class; in order.
    classes: Vec<(char, char, u8)>,
    /// By character, in order.
    canonical: Vec<(char, Box<[char]>)>,
    /// By character, in order, where it is not the canonical one.
    compatible: Vec<(char, Box<[char]>)>,
    compositions: HashMap<(char, char), char>,
}

impl Tables {
    fn unpack(packed: &[u8]) -> Self {
        let mut numbers = Numbers(packed);
        let mut classes = Vec::new();
        let mut code = 0;
        for _ in 0..numbers.next() {
            let first = numbers.char_after(&mut code);
            code += numbers.next();
            let last = char::from_u32(code).unwrap_or(first);
            classes.push((first, last, numbers.next() as u8));
        }
        let mut composed = Vec::new();
        let canonical = numbers.decompositions(|c, chars| composed.push((c, chars.into())));
        let compatible = numbers.decompositions(|_, _| ());
        Self {
            classes,
            canonical,
            compatible,
            compositions: compositions(composed),
        }
    }

    fn class(&self, c: char) -> u8 {
        let i = self.classes.partition_point(|&(_, last, _)| last < c);
        match self.classes.get(i) {
            Some(&(first, _, class)) if first <= c => class,
            _ => 0,
        }
    }

    fn decomposition(&self, c: char, kind: Decomposition) -> Option<&[char]> {
        let find = |all: &[(char, Box<[char]>)]| all.binary_search_by_key(&c, |entry| entry.0).ok();
        if kind == Decomposition::Compatible
            && let Some(i) = find(&self.compatible)
        {
            return Some(&self.compatible[i].1);
        }
        find(&self.canonical).map(|i| &*self.canonical[i].1)
    }

    fn compose(&self, a: char, b: char) -> Option<char> {
        compose_hangul(a, b).or_else(|| self.compositions.get(&(a, b)).copied())
    }
}

/// Pairs that compose, from the full decompositions of what they compose to: all but the last character compose first.
fn compositions(mut composed: Vec<(char, Vec<char>)>) -> HashMap<(char, char), char> {
    composed.sort_by_key(|(_, chars)| chars.len());
    let mut pairs = HashMap::new();
    for (c, chars) in composed {
        let Some((&last, before)) = chars.split_last() else {
            continue;
        };
        let Some((&first, rest)) = before.split_first() else {
            continue;
        };
        let first = rest
            .iter()
            .fold(first, |a, &b| pairs.get(&(a, b)).copied().unwrap_or(a));
        pairs.insert((first, last), c);
    }
    pairs
}

/// Numbers in LEB128. The data are ours: they end where they should.
struct Numbers<'a>(&'a [u8]);

impl Numbers<'_> {
    fn next(&mut self) -> u32 {
        let mut number = 0;
        let mut shift = 0;
        while let Some((&byte, rest)) = self.0.split_first() {
            self.0 = rest;
            number |= u32::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                break;
            }
        }
        number
    }

    /// The character so many after the last one.
    fn char_after(&mut self, code: &mut u32) -> char {
        *code += self.next();
        char::from_u32(*code).unwrap_or(char::REPLACEMENT_CHARACTER)
    }

    /// Characters with what they are taken apart to; `composes` sees those that come back by composing.
    fn decompositions(
        &mut self,
        mut composes: impl FnMut(char, &[char]),
    ) -> Vec<(char, Box<[char]>)> {
        let mut code = 0;
        let n = self.next();
        let entry = |_| {
            let c = self.char_after(&mut code);
            let head = self.next();
            let chars: Box<[char]> = (0..head / 2).map(|_| self.char_after(&mut 0)).collect();
            if head % 2 == 1 {
                composes(c, &chars);
            }
            (c, chars)
        };
        (0..n).map(entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use unicode_normalization_alignments::{
        UnicodeNormalization,
        char::{
            canonical_combining_class, compose as compose_pair, decompose_canonical,
            decompose_compatible,
        },
    };

    fn all() -> impl Iterator<Item = char> {
        (0..=u32::from(char::MAX)).filter_map(char::from_u32)
    }

    fn put(out: &mut Vec<u8>, mut number: u32) {
        while number >= 0x80 {
            out.push(number as u8 | 0x80);
            number >>= 7;
        }
        out.push(number as u8);
    }

    fn put_decompositions(out: &mut Vec<u8>, entries: &[(char, Vec<char>, bool)]) {
        put(out, entries.len() as u32);
        let mut code = 0;
        for (c, chars, composes) in entries {
            put(out, *c as u32 - code);
            code = *c as u32;
            put(out, 2 * chars.len() as u32 + u32::from(*composes));
            for &c in chars {
                put(out, c as u32);
            }
        }
    }

    /// What `normal_forms.bin` is, from the fork's answers about every character.
    fn pack() -> Vec<u8> {
        let mut runs: Vec<(u32, u32, u8)> = Vec::new();
        for c in all() {
            let (code, class) = (c as u32, canonical_combining_class(c));
            match runs.last_mut() {
                Some((_, last, of)) if *of == class && *last + 1 == code => *last = code,
                _ if class != 0 => runs.push((code, code, class)),
                _ => (),
            }
        }
        let mut out = Vec::new();
        put(&mut out, runs.len() as u32);
        let mut code = 0;
        for (first, last, class) in runs {
            put(&mut out, first - code);
            put(&mut out, last - first);
            put(&mut out, u32::from(class));
            code = last;
        }
        let (mut canonical, mut compatible) = (Vec::new(), Vec::new());
        for c in all().filter(|&c| !(0xAC00..0xD7A4).contains(&(c as u32))) {
            let (mut full, mut further) = (Vec::new(), Vec::new());
            decompose_canonical(c, |d| full.push(d));
            decompose_compatible(c, |d| further.push(d));
            let mut before = full[..full.len() - 1].iter().skip(1);
            let first = before.try_fold(full[0], |a, &b| compose_pair(a, b));
            let composes = full.len() > 1
                && first.and_then(|a| compose_pair(a, full[full.len() - 1])) == Some(c);
            if further != full {
                compatible.push((c, further, false));
            }
            if full != [c] {
                canonical.push((c, full, composes));
            }
        }
        put_decompositions(&mut out, &canonical);
        put_decompositions(&mut out, &compatible);
        out
    }

    #[test]
    #[ignore = "writes the data anew"]
    fn write_packed() {
        std::fs::write("src/tokenizer/normal_forms.bin", pack()).unwrap();
    }

    fn check(text: &str) {
        use Decomposition::{Canonical, Compatible};
        let text_of = |chars: &mut dyn Iterator<Item = (char, isize)>| -> String {
            chars.map(|(c, _)| c).collect()
        };
        assert_eq!(
            compose(text, Canonical),
            text_of(&mut text.nfc()),
            "NFC of {text:?}"
        );
        assert_eq!(
            decompose(text, Canonical),
            text_of(&mut text.nfd()),
            "NFD of {text:?}"
        );
        assert_eq!(
            compose(text, Compatible),
            text_of(&mut text.nfkc()),
            "NFKC of {text:?}"
        );
        assert_eq!(
            decompose(text, Compatible),
            text_of(&mut text.nfkd()),
            "NFKD of {text:?}"
        );
    }

    #[test]
    fn every_character_is_the_forks() {
        for c in all() {
            check(&format!("{c}"));
            check(&format!("e{c}\u{323}\u{301}"));
        }
    }

    #[test]
    fn every_pair_that_composes_is_the_forks() {
        let mut firsts: Vec<char> = TABLES.compositions.keys().map(|pair| pair.0).collect();
        let mut lasts: Vec<char> = TABLES.compositions.keys().map(|pair| pair.1).collect();
        firsts.extend([
            '\u{1100}', '\u{1112}', '\u{ac00}', '\u{ac01}', '\u{d788}', 'q',
        ]);
        lasts.extend([
            '\u{1161}', '\u{1175}', '\u{11a7}', '\u{11a8}', '\u{11c2}', 'q',
        ]);
        lasts.sort_unstable();
        lasts.dedup();
        for &a in &firsts {
            for &b in &lasts {
                assert_eq!(TABLES.compose(a, b), compose_pair(a, b), "{a:?} {b:?}");
            }
        }
        assert!(TABLES.compositions.len() > 900);
    }

    #[test]
    fn texts_of_marks_and_syllables_are_the_forks() {
        let pool: Vec<char> = TABLES
            .compositions
            .iter()
            .flat_map(|(&(a, b), &c)| [a, b, c])
            .chain(TABLES.classes.iter().map(|run| run.0))
            .chain("aé ﬁ가각\u{1100}\u{1161}\u{11a8}\u{345}한".chars())
            .collect();
        let mut state = 7u64;
        for _ in 0..50_000 {
            let text: String = (0..8)
                .map(|_| {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    pool[(state >> 33) as usize % pool.len()]
                })
                .collect();
            check(&text);
        }
    }
}
