//! How a written answer is compared: exact match and F1 after the normalisation of `SQuAD` (Rajpurkar et al. 2016, `evaluate-v1.1.py`).

use std::collections::HashMap;

/// Lower case, without punctuation, articles, and more than one space in a row.
pub fn normalize(answer: &str) -> String {
    let lower = answer.to_lowercase();
    let bare: String = lower
        .chars()
        .filter(|c| !c.is_ascii_punctuation())
        .collect();
    let words = bare.split_whitespace();
    let words: Vec<_> = words
        .filter(|word| !matches!(*word, "a" | "an" | "the"))
        .collect();
    words.join(" ")
}

/// Whether an answer is any of the references, normalised.
pub fn exact_match(answer: &str, references: &[String]) -> bool {
    let answer = normalize(answer);
    references
        .iter()
        .any(|reference| normalize(reference) == answer)
}

/// The best F1 of an answer's words against a reference's, 0 to 1.
pub fn f1(answer: &str, references: &[String]) -> f64 {
    let scores = references.iter().map(|reference| f1_of(answer, reference));
    scores.fold(0.0, f64::max)
}

fn f1_of(answer: &str, reference: &str) -> f64 {
    let (answer, reference) = (normalize(answer), normalize(reference));
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for word in reference.split(' ') {
        *counts.entry(word).or_default() += 1;
    }
    let mut n_common = 0;
    for word in answer.split(' ') {
        if let Some(n) = counts.get_mut(word).filter(|n| **n > 0) {
            *n -= 1;
            n_common += 1;
        }
    }
    if n_common == 0 {
        return 0.0;
    }
    let precision = n_common as f64 / answer.split(' ').count() as f64;
    let recall = n_common as f64 / reference.split(' ').count() as f64;
    2.0 * precision * recall / (precision + recall)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refs(texts: &[&str]) -> Vec<String> {
        texts.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn answers_are_compared_as_in_squad() {
        assert_eq!(
            normalize("The  Eiffel-Tower, a tower!"),
            "eiffeltower tower"
        );
        assert!(exact_match("the cat.", &refs(&["dog", "Cat"])));
        assert!(!exact_match("cats", &refs(&["cat"])));
        // 2 of 3 words common, both ways: by hand 2/3.
        assert!((f1("big black cat", &refs(&["the black cat sat"])) - 2.0 / 3.0).abs() < 1e-12);
        assert!((f1("x y", &refs(&["z", "y x"])) - 1.0).abs() < 1e-12);
        assert!(f1("x", &refs(&["z"])).abs() < 1e-12);
        // Words count as often as they stand there.
        assert!((f1("cat cat", &refs(&["cat"])) - 2.0 / 3.0).abs() < 1e-12);
    }
}
