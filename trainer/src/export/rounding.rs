//! How values become integers: by themselves, by what columns weigh on a text, or with feedback from column to column.

use super::Args;
use crate::{
    data::Bars,
    files, interrupt,
    model::{EngineArgs, Model},
    output::{UsageError, note},
};
use anyhow::{Context, Result, bail, ensure};
use fledgling_core::{
    cpu::CpuEngine,
    gguf::{Gguf, TensorDecl},
    quant::{DType, Importance, Method},
};
use fledgling_data::control::Cancelled;
use fledgling_quantize::{Factor, Moments, quantize_rows, quantize_with_feedback};
use std::path::Path;

/// Tokens of a text that go through the model together.
const WINDOW: usize = 512;
/// Bytes of second moments that are held at a time; a model with more takes several passes over the text.
const MOMENT_BYTES: usize = 1 << 30;
/// Tokens from the end of the text that `--target-size` and `--max-kl` measure on, where it is long enough.
const HELD_OUT: usize = 1024;

/// `--rounding`
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Rounding {
    /// Scales from the extremes of a block, as ggml's reference has it
    Nearest,
    /// Scales of the smallest error, each block by itself
    Search,
    /// The same, and what is lost in a column is made good by those after it (with --calibrate)
    Feedback,
}

/// Tokens of the text of `--calibrate`.
#[derive(Debug, Clone)]
pub(super) struct Text {
    /// To gather from.
    pub(super) tokens: Vec<u32>,
    /// To measure on.
    pub(super) held_out: Vec<u32>,
    pub(super) window: usize,
}

impl Text {
    fn read(path: &Path, n_tokens: usize, model: &Model) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {} (it must be UTF-8)", path.display()))?;
        let tokenizer = &model.info.tokenizer;
        let mut tokens = tokenizer.encode(&text, tokenizer.adds_bos(), false);
        ensure!(
            !tokens.is_empty(),
            "{} is empty: --calibrate needs a text such as the model is meant for",
            path.display()
        );
        let window = WINDOW.min(model.info.spec.n_ctx);
        if tokens.len() < 4 * window {
            note(format!(
                "{}: {} tokens are few to calibrate with; some thousand are better",
                path.display(),
                tokens.len()
            ));
        }
        let from = tokens.len().saturating_sub(HELD_OUT);
        let held_out = tokens[from..].to_vec();
        if from > 4 * HELD_OUT {
            tokens.truncate(from);
        }
        tokens.truncate(n_tokens);
        Ok(Self {
            tokens,
            held_out,
            window,
        })
    }
}

/// Makes the bytes of tensors.
pub(super) struct Rounder<'a> {
    model: &'a Model,
    rounding: Rounding,
    importance: Importance,
    /// Of rounding with feedback.
    feedback: Option<Feedback>,
    /// Of `--calibrate`.
    pub(super) text: Option<Text>,
}

/// What rounding with feedback needs.
struct Feedback {
    engine: CpuEngine,
    moments: Moments,
    /// Names and widths of all matrices, in the order in which they come.
    matrices: Vec<(String, usize)>,
    /// The input that was factored last, which several matrices read.
    factor: Option<(usize, Factor)>,
}

impl<'a> Rounder<'a> {
    /// Reads and gathers what the flags ask for. `plan` has the tensors in the order in which their bytes will be asked for.
    pub(super) fn new(
        args: &Args,
        model: &'a Model,
        plan: &[TensorDecl],
        is_trained_for: bool,
    ) -> Result<Self> {
        let text = args.calibrate.as_ref();
        let text = text
            .map(|path| Text::read(path, args.calibrate_tokens, model))
            .transpose()?;
        let rounding = match args.rounding {
            Some(Rounding::Feedback) if text.is_none() => {
                return Err(UsageError(
                    "--rounding feedback needs a text: give --calibrate FILE".to_owned(),
                )
                .into());
            }
            Some(rounding) => rounding,
            // What a model was trained for is rounded as its training rounded it.
            None if is_trained_for => Rounding::Nearest,
            None if text.is_some() => Rounding::Feedback,
            None => Rounding::Search,
        };
        let mut rounder = Self {
            model,
            rounding,
            importance: Importance::default(),
            feedback: None,
            text,
        };
        if let Some(path) = &args.imatrix {
            rounder.importance = read_importance(path, model)?;
        }
        rounder.calibrate(args, plan, rounding == Rounding::Feedback)?;
        Ok(rounder)
    }

    /// Goes over the text, for the importance of all columns and, with feedback, for the moments of the first matrices.
    fn calibrate(&mut self, args: &Args, plan: &[TensorDecl], feedback: bool) -> Result<()> {
        let (Some(text), Some(path)) = (&self.text, &args.calibrate) else {
            return Ok(());
        };
        let engine = EngineArgs::default().load(self.model)?;
        let matrices = plan
            .iter()
            .filter(|tensor| feedback && tensor.shape.len() > 1);
        let mut feedback = Feedback {
            engine,
            moments: Moments::default(),
            matrices: matrices
                .map(|tensor| (tensor.name.clone(), tensor.shape[1]))
                .collect(),
            factor: None,
        };
        let importance = feedback.gather(text, 0)?;
        let bytes = importance.to_gguf(&[&path.to_string_lossy()], text.window as u32)?;
        if let Some(out) = &args.write_imatrix {
            files::refuse_existing(out, args.force)?;
            files::write_whole(out, &bytes)?;
        }
        // As the file has it, in f32: both give the same bytes.
        self.importance = Importance::from_gguf(&Gguf::parse(bytes.into())?)?;
        self.feedback = (!feedback.matrices.is_empty()).then_some(feedback);
        Ok(())
    }

    /// What the file says of it.
    pub(super) fn name(&self) -> &'static str {
        match self.rounding {
            Rounding::Nearest => "nearest",
            Rounding::Search => "search",
            Rounding::Feedback => "feedback",
        }
    }

    /// Of all columns, where a text or a file gave it.
    pub(super) fn importance(&self) -> &Importance {
        &self.importance
    }

    /// A tensor in its type, as it stands in the file.
    pub(super) fn bytes_of(&mut self, tensor: &TensorDecl) -> Result<Vec<u8>> {
        let (info, bytes) = self.model.gguf.tensor(&tensor.name)?;
        if info.dtype == tensor.dtype {
            return Ok(bytes.to_vec());
        }
        Ok(self.round(tensor)?.0)
    }

    /// A tensor in its type, and the mean square of the error that it makes on the text: of outputs where that is known, else of
    /// values.
    pub(super) fn round(&mut self, tensor: &TensorDecl) -> Result<(Vec<u8>, f64)> {
        let values = self.model.gguf.tensor_f32(&tensor.name)?;
        check_values(&tensor.name, &values, tensor.dtype)?;
        let n_cols = tensor.shape.last().copied().unwrap_or(1);
        let factor = match (&mut self.feedback, &self.text) {
            (Some(feedback), Some(text)) => feedback.factor(&tensor.name, text)?,
            _ => None,
        };
        if let Some(factor) = factor.filter(|_| tensor.dtype.is_quantized()) {
            let rounded = quantize_with_feedback(tensor.dtype, &values, factor);
            return Ok((rounded.bytes, rounded.error));
        }
        let importance = self.importance.means(&tensor.name);
        let importance = importance.as_deref();
        let method = match self.rounding {
            Rounding::Nearest => Method::Nearest,
            Rounding::Search | Rounding::Feedback => Method::Search,
        };
        let bytes = quantize_rows(tensor.dtype, &values, n_cols, importance, method);
        let mut rounded = vec![0.0; values.len()];
        fledgling_core::quant::dequantize(tensor.dtype, &bytes, &mut rounded);
        // In the unit of rounding with feedback, where other types of this tensor are rounded so.
        let weights = factor.map_or(importance, |factor| Some(&factor.squares));
        let error = weighted_error(&values, &rounded, n_cols, weights);
        Ok((bytes, error))
    }
}

/// `Σ importance (x - x̂)²`
fn weighted_error(x: &[f32], rounded: &[f32], n_cols: usize, importance: Option<&[f32]>) -> f64 {
    let square = |(i, (x, y)): (usize, (&f32, &f32))| {
        let weight = importance.map_or(1.0, |weights| weights[i % n_cols]);
        f64::from(weight) * f64::from(x - y).powi(2)
    };
    x.iter().zip(rounded).enumerate().map(square).sum()
}

impl Feedback {
    /// The factor of what a matrix reads; none where no product reads it.
    fn factor(&mut self, name: &str, text: &Text) -> Result<Option<&Factor>> {
        if self.moments.of(name).is_none() {
            let Some(at) = self.matrices.iter().position(|(known, _)| known == name) else {
                return Ok(None);
            };
            if self.seen_to(at) {
                return Ok(None);
            }
            self.factor = None;
            self.gather(text, at)?;
        }
        let Some((idx, input)) = self.moments.of(name) else {
            return Ok(None);
        };
        if self.factor.as_ref().is_none_or(|(of, _)| *of != idx) {
            self.factor = Some((idx, Factor::new(input)?));
        }
        Ok(self.factor.as_ref().map(|(_, factor)| factor))
    }

    /// Whether a matrix after this one was gathered with it, so that this one is read by no product.
    fn seen_to(&self, at: usize) -> bool {
        self.group(at).any(|name| self.moments.of(name).is_some())
    }

    /// The matrices from one on whose moments are held together.
    fn group(&self, from: usize) -> impl Iterator<Item = &str> {
        let mut len_bytes = 0;
        let fits = move |(_, n_cols): &&(String, usize)| {
            let is_first = len_bytes == 0;
            len_bytes += 4 * n_cols * n_cols;
            is_first || len_bytes <= MOMENT_BYTES
        };
        let group = self.matrices[from..].iter().take_while(fits);
        group.map(|(name, _)| name.as_str())
    }

    fn gather(&mut self, text: &Text, from: usize) -> Result<Importance> {
        self.moments = Moments::default();
        let group: Vec<&str> = self.group(from).collect();
        let control = Bars::begin();
        let wanted = |name: &str| group.contains(&name);
        let gathered = Moments::gather(&self.engine, &text.tokens, text.window, &wanted, &control);
        control.clear();
        if gathered.as_ref().is_err_and(anyhow::Error::is::<Cancelled>) {
            stopped();
        }
        let (moments, importance) = gathered?;
        self.moments = moments;
        Ok(importance)
    }
}

/// Ends the command at somebody's wish.
pub(super) fn stopped() -> ! {
    note("stopped; nothing was written");
    interrupt::leave()
}

/// An importance matrix, which must be the model's.
fn read_importance(path: &Path, model: &Model) -> Result<Importance> {
    let bytes = std::fs::read(path)
        .with_context(|| format!("cannot read the importance matrix {}", path.display()))?;
    let file = Gguf::parse(bytes.into()).with_context(|| path.display().to_string())?;
    let importance = Importance::from_gguf(&file).with_context(|| path.display().to_string())?;
    let mut n_found = 0;
    for info in &model.gguf.header().tensors {
        let Some(means) = importance.means(&info.name) else {
            continue;
        };
        n_found += 1;
        ensure!(
            means.len() as u64 == info.shape[0],
            "{}: `{}` has {} columns there and {} in the model: it was made for another model",
            path.display(),
            info.name,
            means.len(),
            info.shape[0]
        );
    }
    ensure!(
        n_found > 0,
        "{}: none of its tensors is in the model: it was made for another one",
        path.display()
    );
    Ok(importance)
}

/// Refuses values that the type cannot hold: they would become infinite without a word.
pub(crate) fn check_values(name: &str, values: &[f32], dtype: DType) -> Result<()> {
    const F16_MAX: f32 = 65504.0;
    let limit = match dtype {
        DType::F32 | DType::BF16 => f32::MAX,
        DType::Q8_0 => F16_MAX * 127.0,
        DType::Q4_0 => F16_MAX * 8.0,
        DType::Q5_0 => F16_MAX * 16.0,
        _ => F16_MAX,
    };
    match values
        .iter()
        .find(|value| !value.is_finite() || value.abs() > limit)
    {
        Some(value) => bail!(
            "tensor `{name}` holds {value}, which {} cannot hold: export in f32 or bf16, or train again if it is not a number",
            dtype.name()
        ),
        None => Ok(()),
    }
}
