//! Which language a document is in, by `whatlang` (trigrams and scripts: Cavnar and Trenkle, 1994).

use super::Reason;
use crate::document::Body;
use anyhow::{Result, bail};
use whatlang::Lang;

/// Characters that are looked at: more make the detection hardly surer.
const PREFIX: usize = 2000;

/// The languages that are kept; all, when there are none.
#[derive(Debug)]
pub(super) struct Languages {
    kept: Vec<&'static str>,
    confidence: f64,
}

impl Languages {
    pub(super) fn new(codes: &[String], confidence: f64) -> Result<Self> {
        let kept = codes
            .iter()
            .map(|code| known(code))
            .collect::<Result<_>>()?;
        Ok(Self { kept, confidence })
    }

    /// The language and how sure that is; not looked for when all are kept.
    pub(super) fn detect(&self, body: &Body) -> Option<(&'static str, f64)> {
        (!self.kept.is_empty()).then(|| detect(body))?
    }

    /// A document of which one cannot say stays.
    pub(super) fn judge(&self, language: Option<(&'static str, f64)>) -> Option<Reason> {
        let (code, confidence) = language?;
        let goes = confidence >= self.confidence && !self.kept.contains(&code);
        goes.then(|| {
            let kept = self.kept.join(", ");
            (
                "language",
                format!("it is {code} with a confidence of {confidence:.2}, not {kept}"),
            )
        })
    }
}

/// The language of a document's beginning, and how sure that is.
pub(super) fn detect(body: &Body) -> Option<(&'static str, f64)> {
    let mut text = String::new();
    let mut left = PREFIX;
    for part in body.parts() {
        text.extend(part.chars().take(left).inspect(|_| left -= 1));
        text.push('\n');
    }
    let info = whatlang::detect(&text)?;
    Some((info.lang().code(), info.confidence()))
}

fn known(code: &str) -> Result<&'static str> {
    let all = || Lang::all().iter();
    if let Some(lang) = all().find(|lang| lang.code() == code) {
        return Ok(lang.code());
    }
    // Two-letter codes that are no beginnings of the others.
    let nearest = match code {
        "zh" | "zho" | "chi" => "cmn",
        "de" | "ger" => "deu",
        "es" => "spa",
        "fa" | "per" | "fas" => "pes",
        "nl" | "dut" => "nld",
        "pl" => "pol",
        "pt" => "por",
        "ja" | "jp" => "jpn",
        _ => {
            let likeness = |lang: &&Lang| {
                let name = lang.eng_name().to_lowercase();
                let code = code.to_lowercase();
                let by_name = strsim::jaro_winkler(&name, &code);
                strsim::jaro_winkler(lang.code(), &code).max(by_name)
            };
            all()
                .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
                .map_or("eng", |lang| lang.code())
        }
    };
    bail!(
        "clean.languages: `{code}` is no language code that can be told; the nearest is `{nearest}` (ISO 639-3, such as eng, deu, cmn)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn languages(codes: &[&str]) -> Result<Languages> {
        let codes: Vec<String> = codes.iter().map(ToString::to_string).collect();
        Languages::new(&codes, 0.8)
    }

    #[test]
    fn an_unknown_code_names_the_nearest() {
        for (code, nearest) in [
            ("en", "eng"),
            ("german", "deu"),
            ("English", "eng"),
            ("zh", "cmn"),
            ("fr", "fra"),
            ("engl", "eng"),
            ("de", "deu"),
        ] {
            let error = languages(&["eng", code]).unwrap_err().to_string();
            assert!(
                error.contains(&format!("the nearest is `{nearest}`")),
                "{code}: {error}"
            );
        }
    }

    #[test]
    fn another_language_goes_and_what_nobody_can_tell_stays() {
        let english = languages(&["eng"]).unwrap();
        let judge = |text: &str| english.judge(english.detect(&Body::Text(text.into())));
        let (step, why) =
            judge("Это предложение написано по-русски, и его нельзя спутать ни с чем другим.")
                .unwrap();
        assert_eq!(step, "language");
        assert!(
            why.starts_with("it is rus with a confidence of 1.00, not eng"),
            "{why}"
        );
        for text in [
            "The quick brown fox jumps over the lazy dog and runs away from it.",
            "",
            "12 34 !!",
        ] {
            assert_eq!(judge(text), None, "{text}");
        }
        let all = languages(&[]).unwrap();
        assert_eq!(
            all.detect(&Body::Text("Das ist ein deutscher Satz.".into())),
            None
        );
    }

    #[test]
    fn only_a_prefix_counts() {
        let german = languages(&["deu"]).unwrap();
        let text = "Dies ist ein ganz gewöhnlicher deutscher Satz über das Wetter. ".repeat(40)
            + &"This is English. ".repeat(1000);
        assert_eq!(german.judge(german.detect(&Body::Text(text))), None);
    }
}
