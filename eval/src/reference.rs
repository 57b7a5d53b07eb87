//! Models against a reference, token by token: how much was lost in quantising.
//!
//! All engines run in lockstep over a stretch of tokens; only the reference's logits of that stretch are held, and each model's are
//! reduced against them as they come.

use crate::{
    logits::Distribution,
    perplexity::{Piece, Pieces, first_counted},
    score::{Model, check},
    stats::{Clustered, Estimate, Over, percentile},
};
use anyhow::{Result, ensure};
use fledgling_data::control::{Control, Unit};
use serde::Serialize;

/// Positions whose logits are held of the reference: 25 MB for a vocabulary of 49,152.
const STRETCH: usize = 128;
/// Flips that are shown.
const N_FLIPS: usize = 40;
/// Tokens of text before a flip.
const N_CONTEXT: usize = 24;
/// The histogram goes from here, below which all is in the first bar, …
const LEAST: f64 = 1e-6;
/// … in so many bars to a factor of ten.
const BARS_A_DECADE: usize = 2;
const N_DECADES: usize = 8;

/// A model beside the reference.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The model.
    pub model: String,
    /// The reference.
    pub reference: String,
    /// Positions that were compared.
    pub tokens: u64,
    /// Kullback-Leibler divergence `Σ p (log p - log q)` of the reference's distribution `p` against the model's, in nats.
    pub kl: Kl,
    /// Share of positions at which both hold the same token for the likeliest.
    pub top1_agreement: Estimate,
    /// The model's perplexity by the reference's; its standard error is that of the paired difference of logarithms.
    pub perplexity_ratio: Estimate,
    /// The reference's perplexity.
    pub reference_perplexity: Estimate,
    /// The model's perplexity over the same tokens.
    pub perplexity: Estimate,
    /// What the standard errors are over.
    pub stderr_over: Over,
    /// Positions whose likeliest token is another one.
    pub n_flips: u64,
    /// Those of them with the greatest divergence.
    pub flips: Vec<Flip>,
}

/// How the divergence is spread.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Kl {
    /// Its mean.
    pub mean: Estimate,
    /// Half are below.
    pub median: f64,
    /// 90 of 100 are below.
    pub p90: f64,
    /// 99 of 100 are below.
    pub p99: f64,
    /// The greatest.
    pub max: f64,
    /// How many fall between each bound and the next one (from 0 to the first, and from the last on).
    pub histogram: Vec<Bar>,
}

/// A bar of the histogram.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Bar {
    /// From here to the next one's.
    pub from: f64,
    /// How many.
    pub count: u64,
}

/// A position at which the model would have written something else.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Flip {
    /// The text before it, its end.
    pub context: String,
    /// What stands there in the text.
    pub target: String,
    /// What the reference would have written.
    pub reference: Candidate,
    /// What the model would have written.
    pub model: Candidate,
    /// The divergence there, in nats.
    pub kl: f64,
}

/// A token with its probability in both.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Candidate {
    /// The token.
    pub text: String,
    /// In the reference.
    pub p_reference: f64,
    /// In the model.
    pub p_model: f64,
}

/// One position.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    kl: f64,
    nll_reference: f64,
    nll_model: f64,
    top_reference: u32,
    top_model: u32,
    /// Of the reference's token, then of the model's: in the reference, and in the model.
    probabilities: [(f64, f64); 2],
}

/// Compares models with a reference over the same tokens. Progress counts pieces.
///
/// # Errors
/// When the vocabularies differ; those of the engines; somebody's wish to stop.
pub fn compare(
    reference: &Model<'_>,
    models: &[Model<'_>],
    pieces: &Pieces<'_>,
    control: &dyn Control,
) -> Result<Vec<Comparison>> {
    for model in models {
        check_vocabulary(reference, model)?;
    }
    ensure!(!pieces.is_empty(), "there is no token to compare at");
    control.begin("compare", Unit::Documents, Some(pieces.len() as u64));
    let mut gathered = vec![Gathered::default(); models.len()];
    for idx in 0..pieces.len() {
        let piece = pieces.get(idx)?;
        compare_piece(reference, models, &piece, &mut gathered, control)?;
        control.advance(1);
    }
    let models = models.iter().zip(gathered);
    Ok(models
        .map(|(model, gathered)| gathered.finish(model.name, reference.name))
        .collect())
}

/// Whether two models mean the same by the same ids; [`compare`] asks this too.
///
/// # Errors
/// When they do not, with the first token that differs.
pub fn check_vocabulary(reference: &Model<'_>, model: &Model<'_>) -> Result<()> {
    let (a, b) = (&reference.info.tokenizer, &model.info.tokenizer);
    let (n_a, n_b) = (reference.info.spec.vocab_size, model.info.spec.vocab_size);
    ensure!(
        n_a == n_b && a.vocab_size() == b.vocab_size(),
        "{} and {} have different vocabularies ({n_a} and {n_b} tokens): a divergence is between distributions over the same tokens",
        reference.name,
        model.name
    );
    let differs = |id: &u32| a.token_text(*id) != b.token_text(*id);
    if let Some(id) = (0..a.vocab_size() as u32).find(differs) {
        let text = |text: Option<&str>| format!("{:?}", text.unwrap_or_default());
        anyhow::bail!(
            "{} and {} have different vocabularies: token {id} is {} in the one and {} in the other",
            reference.name,
            model.name,
            text(a.token_text(id)),
            text(b.token_text(id))
        );
    }
    Ok(())
}

/// What is compared of each model.
#[derive(Debug, Clone, Default)]
struct Gathered {
    kls: Vec<f32>,
    kl: Clustered,
    agree: Clustered,
    difference: Clustered,
    nll_reference: Clustered,
    nll_model: Clustered,
    n_flips: u64,
    /// The greatest divergences first.
    flips: Vec<Flip>,
}

fn compare_piece(
    reference: &Model<'_>,
    models: &[Model<'_>],
    piece: &Piece,
    gathered: &mut [Gathered],
    control: &dyn Control,
) -> Result<()> {
    let n_fed = piece.ids.len() - 1;
    let mut base = reference.engine.begin(n_fed)?;
    let ways = models.iter().map(|model| model.engine.begin(n_fed));
    let mut ways = ways.collect::<Result<Vec<_>>>()?;
    let engines = models.iter().chain([reference]).map(|model| model.engine);
    let len = engines.map(|engine| engine.stretch(STRETCH)).max();
    let mut seen: Vec<Vec<(usize, Seen)>> = vec![Vec::new(); models.len()];
    let mut start = 0;
    while start < n_fed {
        check(control)?;
        let stretch = start..(start + len.unwrap_or(STRETCH)).min(n_fed);
        start = stretch.end;
        let wanted = stretch.start.max(first_counted(piece) - 1).min(stretch.end)..stretch.end;
        // [wanted][V]
        let rows = base.go(&piece.ids, &stretch, &wanted, &|_, logits| logits.to_vec())?;
        let compared = |position: usize, logits: &[f32]| {
            let target = piece.ids[position + 1];
            see(&rows[position - wanted.start], logits, target)
        };
        for (way, seen) in ways.iter_mut().zip(&mut seen) {
            let more = way.go(&piece.ids, &stretch, &wanted, &compared)?;
            let counted = wanted.clone().zip(more);
            seen.extend(counted.filter(|(t, _)| piece.counted[t + 1]));
        }
    }
    for (seen, gathered) in seen.iter().zip(gathered) {
        gathered.add(reference, piece, seen);
    }
    Ok(())
}

/// Two rows of logits at one position. [V], [V]
fn see(reference: &[f32], model: &[f32], target: u32) -> Seen {
    let (p, q) = (Distribution::new(reference), Distribution::new(model));
    let (top_reference, top_model) = (p.top(), q.top());
    let both = |token| (p.log_prob(token).exp(), q.log_prob(token).exp());
    Seen {
        kl: p.kl(&q),
        nll_reference: -p.log_prob(target),
        nll_model: -q.log_prob(target),
        top_reference,
        top_model,
        probabilities: [both(top_reference), both(top_model)],
    }
}

impl Gathered {
    fn add(&mut self, reference: &Model<'_>, piece: &Piece, seen: &[(usize, Seen)]) {
        let values = |value: fn(&Seen) -> f64| seen.iter().map(move |(_, seen)| value(seen));
        self.kls.extend(seen.iter().map(|(_, seen)| seen.kl as f32));
        self.kl.add(values(|seen| seen.kl));
        self.agree.add(values(|seen| {
            f64::from(u8::from(seen.top_reference == seen.top_model))
        }));
        self.difference
            .add(values(|seen| seen.nll_model - seen.nll_reference));
        self.nll_reference.add(values(|seen| seen.nll_reference));
        self.nll_model.add(values(|seen| seen.nll_model));
        for (t, seen) in seen {
            if seen.top_reference != seen.top_model {
                self.n_flips += 1;
                self.add_flip(reference, piece, *t, seen);
            }
        }
    }

    fn add_flip(&mut self, reference: &Model<'_>, piece: &Piece, t: usize, seen: &Seen) {
        let place = self.flips.partition_point(|flip| flip.kl >= seen.kl);
        if place >= N_FLIPS {
            return;
        }
        let tokenizer = &reference.info.tokenizer;
        let start = (t + 1).saturating_sub(N_CONTEXT);
        let text = |id: u32| tokenizer.decode(&[id], false);
        let candidate = |id, (p_reference, p_model)| Candidate {
            text: text(id),
            p_reference,
            p_model,
        };
        let flip = Flip {
            context: tokenizer.decode(&piece.ids[start..=t], false),
            target: text(piece.ids[t + 1]),
            reference: candidate(seen.top_reference, seen.probabilities[0]),
            model: candidate(seen.top_model, seen.probabilities[1]),
            kl: seen.kl,
        };
        self.flips.insert(place, flip);
        self.flips.truncate(N_FLIPS);
    }

    fn finish(mut self, model: &str, reference: &str) -> Comparison {
        self.kls.sort_by(f32::total_cmp);
        let (mean, stderr_over) = self.kl.mean();
        let kl = Kl {
            mean,
            median: percentile(&self.kls, 0.5),
            p90: percentile(&self.kls, 0.9),
            p99: percentile(&self.kls, 0.99),
            max: percentile(&self.kls, 1.0),
            histogram: histogram(&self.kls),
        };
        Comparison {
            model: model.to_owned(),
            reference: reference.to_owned(),
            tokens: self.kls.len() as u64,
            kl,
            top1_agreement: self.agree.mean().0,
            perplexity_ratio: self.difference.mean().0.exp(),
            reference_perplexity: self.nll_reference.mean().0.exp(),
            perplexity: self.nll_model.mean().0.exp(),
            stderr_over,
            n_flips: self.n_flips,
            flips: self.flips,
        }
    }
}

/// Counts of sorted values in bars of equal width on a logarithmic axis.
fn histogram(sorted: &[f32]) -> Vec<Bar> {
    let bound = |i: usize| LEAST * 10_f64.powf(i as f64 / BARS_A_DECADE as f64);
    let below = |limit: f64| sorted.partition_point(|&kl| f64::from(kl) < limit) as u64;
    let n = N_DECADES * BARS_A_DECADE;
    let first = Bar {
        from: 0.0,
        count: below(bound(0)),
    };
    let others = (0..n).map(|i| {
        let end = if i + 1 == n {
            f64::INFINITY
        } else {
            bound(i + 1)
        };
        Bar {
            from: bound(i),
            count: below(end) - below(bound(i)),
        }
    });
    std::iter::once(first).chain(others).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        engine::Engine,
        perplexity::{self, Windows},
        testing::{Plain, tiny, tiny_of},
    };
    use fledgling_core::{cpu::CpuEngine, model::ModelInfo, quant::DType};
    use fledgling_data::control::Quiet;

    fn model<'a>(name: &'a str, opened: &'a (ModelInfo, CpuEngine)) -> Model<'a> {
        Model {
            name,
            info: &opened.0,
            engine: Engine::Cpu(&opened.1),
        }
    }

    fn text() -> String {
        "The quick brown fox jumps over the lazy dog and the cat. ".repeat(10)
    }

    const CUT: Windows = Windows {
        window: 100,
        stride: 60,
    };

    #[test]
    fn a_model_beside_itself_and_beside_others() {
        let (one, two, far) = (tiny(), tiny_of(DType::Q4_0, 5), tiny_of(DType::F32, 9));
        let (reference, same) = (model("f32", &one), model("same", &one));
        let pieces = Pieces::of_text(&one.0, &text(), CUT, usize::MAX).unwrap();
        let models = [same, model("q4", &two), model("far", &far)];
        let got = compare(&reference, &models, &pieces, &Quiet).unwrap();
        let own = perplexity::measure(&reference, &pieces, &Quiet).unwrap();
        for (compared, model) in got.iter().zip(&models) {
            assert_eq!(compared.tokens, own.tokens);
            assert!((compared.reference_perplexity.value - own.perplexity.value).abs() < 1e-9);
            let alone = perplexity::measure(model, &pieces, &Quiet).unwrap();
            assert!((compared.perplexity.value - alone.perplexity.value).abs() < 1e-9);
            let ratio = alone.perplexity.value / own.perplexity.value;
            assert!((compared.perplexity_ratio.value - ratio).abs() < 1e-9);
            let n: u64 = compared.kl.histogram.iter().map(|bar| bar.count).sum();
            assert_eq!(n, own.tokens);
            let sorted: Vec<f64> = compared.flips.iter().map(|flip| flip.kl).collect();
            assert!(sorted.is_sorted_by(|a, b| a >= b));
        }
        let [same, q4, far] = &got[..] else { panic!() };
        assert!(same.kl.max < 1e-6 && same.n_flips == 0);
        assert!((same.top1_agreement.value - 1.0).abs() < 1e-12);
        assert!(q4.kl.mean.value > 1e-4 && q4.kl.mean.value < far.kl.mean.value);
        assert!(q4.kl.median <= q4.kl.p90 && q4.kl.p99 <= q4.kl.max);
        assert!(far.n_flips > 0 && !far.flips[0].context.is_empty());
        let flip = &far.flips[0];
        assert!(flip.reference.p_reference >= flip.model.p_reference);
        assert!(flip.model.p_model >= flip.reference.p_model);
    }

    #[test]
    fn engines_of_whole_texts_compare_as_those_that_go_on() {
        let (one, two) = (tiny(), tiny_of(DType::Q4_0, 5));
        let pieces = Pieces::of_text(&one.0, &text(), CUT, usize::MAX).unwrap();
        let (a, b) = (model("a", &one), model("b", &two));
        let want = compare(&a, &[b], &pieces, &Quiet).unwrap();
        let (whole_a, whole_b) = (Plain(&one.1), Plain(&two.1));
        let [a, b] = [(a, &whole_a), (b, &whole_b)].map(|(model, whole)| Model {
            engine: Engine::Whole(whole),
            ..model
        });
        assert_eq!(compare(&a, &[b], &pieces, &Quiet).unwrap(), want);
        // Stretches that a text of more is in.
        let piece = pieces.get(0).unwrap();
        let mut way = b.engine.begin(piece.ids.len()).unwrap();
        let mut other = Engine::Cpu(&two.1).begin(piece.ids.len()).unwrap();
        for stretch in [0..40, 40..41, 41..90] {
            let wanted = stretch.end.min(stretch.start + 5)..stretch.end;
            let go = |way: &mut crate::engine::Way<'_>| {
                let copy = |t: usize, logits: &[f32]| (t, logits.to_vec());
                way.go(&piece.ids, &stretch, &wanted, &copy).unwrap()
            };
            assert_eq!(go(&mut way), go(&mut other));
        }
    }

    #[test]
    fn the_divergence_is_that_of_its_definition() {
        let (one, two) = (tiny(), tiny_of(DType::F32, 9));
        let pieces = Pieces::of_text(&one.0, &text(), CUT, 1).unwrap();
        let got = compare(&model("a", &one), &[model("b", &two)], &pieces, &Quiet).unwrap();
        let piece = pieces.get(0).unwrap();
        let rows = |opened: &(ModelInfo, CpuEngine)| {
            let mut rows: Vec<Vec<f64>> = Vec::new();
            let mut session = opened.1.session(128).unwrap();
            let ids = &piece.ids[..piece.ids.len() - 1];
            let mut each = |_: usize, logits: &[f32]| {
                let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
                rows.push(logits.iter().map(|&x| f64::from(x) - sum.ln()).collect());
            };
            opened.1.forward_all(&mut session, ids, &mut each).unwrap();
            rows
        };
        let (p, q) = (rows(&one), rows(&two));
        let kl = p.iter().zip(&q).map(|(p, q)| {
            let terms = p.iter().zip(q).map(|(p, q)| p.exp() * (p - q));
            terms.sum::<f64>()
        });
        let mean = kl.sum::<f64>() / p.len() as f64;
        let value = got[0].kl.mean.value;
        assert!((value - mean).abs() < 1e-5, "{value} {mean}");
    }

    #[test]
    fn other_vocabularies_are_refused() {
        use fledgling_core::{cpu::CpuOptions, gguf::Gguf, spec::Family, testing::tiny_model};
        let gguf = Gguf::parse(tiny_model(Family::Gpt2, DType::F32, 1).into()).unwrap();
        let info = ModelInfo::from_header(gguf.header()).unwrap();
        let engine = CpuEngine::new(&gguf, &CpuOptions::default()).unwrap();
        let (one, mut other) = (tiny(), (info, engine));
        let mut spec = other.0.spec.clone();
        spec.vocab_size += 1;
        other.0.spec = spec;
        let pieces = Pieces::of_text(&one.0, &text(), CUT, 1).unwrap();
        let error = compare(&model("a", &one), &[model("b", &other)], &pieces, &Quiet);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("different vocabularies"), "{error}");
    }
}
