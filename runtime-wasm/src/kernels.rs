//! The compute pipelines. WGSL has no modules: a shader is the concatenation of whole files of `shaders/`, and all that
//! varies is a pipeline-overridable constant.

use crate::gpu::{Gpu, Tuning};
use fledgling_core::{
    quant::DType,
    spec::{ModelSpec, Norm, Pairing, Position},
};
use std::collections::HashMap;
use wgpu::{BindGroup, BindGroupLayout, Buffer, ComputePipeline, ShaderModule};

/// The files of a shader, put together when it is made: each is in the program once.
type Source = &'static [&'static str];

macro_rules! shader {
    ($($file:literal),+) => { &[$(include_str!(concat!("shaders/", $file, ".wgsl"))),+] };
}

const ROW_QUANT: Source = shader!(
    "half",
    "exp",
    "product",
    "row",
    "quant_blocks",
    "matvec_quant"
);
const ROW_FLOAT: Source = shader!(
    "half",
    "exp",
    "product",
    "row",
    "float_rows",
    "matvec_float"
);
const TILE_QUANT: Source = shader!(
    "half",
    "exp",
    "product",
    "tile",
    "quant_blocks",
    "matmul_quant"
);
const TILE_FLOAT: Source = shader!(
    "half",
    "exp",
    "product",
    "tile",
    "float_rows",
    "matmul_float"
);
const EMBED_QUANT: Source = shader!("half", "embed_quant", "embed");
const EMBED_FLOAT: Source = shader!("half", "embed_float", "embed");
const HEADS: Source = shader!("half", "heads");
const ATTENTION: Source = shader!("exp", "attention");
const ARGMAX: Source = shader!("argmax");

/// Tokens that a tile kernel computes at once (`tile.wgsl`).
pub(crate) const TILE_TOKENS: u32 = 4;
/// Threads of a workgroup where nothing depends on it.
const PLAIN_WG: u32 = 64;

/// What becomes of a product (`product.wgsl`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Epilogue {
    Store = 0,
    Add = 1,
    SwiGlu = 2,
    Gelu = 3,
    Qkv = 4,
    SiluMul = 5,
}

/// How many tokens a product computes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Rows {
    /// The last one of the step.
    Last,
    /// All, in tiles of [`TILE_TOKENS`].
    Tiles,
}

/// The norm before a product (`product.wgsl`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum RowNorm {
    None = 0,
    Layer = 1,
    Rms = 2,
}

impl From<Option<Norm>> for RowNorm {
    fn from(norm: Option<Norm>) -> Self {
        match norm {
            None => Self::None,
            Some(Norm::LayerNorm) => Self::Layer,
            Some(Norm::RmsNorm) => Self::Rms,
        }
    }
}

/// One pipeline of a product.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Product {
    pub(crate) rows: Rows,
    pub(crate) dtype: DType,
    pub(crate) norm: RowNorm,
    pub(crate) epilogue: Epilogue,
    pub(crate) has_bias: bool,
}

/// What `heads.wgsl` does; the default is what the epilogue of a product does too.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct HeadStep {
    /// Elements half a head apart turn together, not neighbours.
    pub(crate) halves: bool,
    /// Heads of q and k are normalised first.
    pub(crate) norm: bool,
}

impl HeadStep {
    pub(crate) fn of(spec: &ModelSpec) -> Self {
        let halves = matches!(
            spec.position,
            Position::Rope {
                pairing: Pairing::Halves,
                ..
            }
        );
        Self {
            halves,
            norm: spec.qk_norm,
        }
    }
}

/// The sizes that kernels take as constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Dims {
    pub(crate) n_head: usize,
    pub(crate) n_kv_head: usize,
    pub(crate) head_dim: usize,
    pub(crate) n_ctx: usize,
    pub(crate) vocab_size: usize,
    pub(crate) norm_eps: f32,
}

impl Dims {
    pub(crate) fn new(spec: &ModelSpec, n_ctx: usize) -> Self {
        let &ModelSpec {
            n_head,
            n_kv_head,
            head_dim,
            vocab_size,
            norm_eps,
            ..
        } = spec;
        Self {
            n_head,
            n_kv_head,
            head_dim,
            n_ctx,
            vocab_size,
            norm_eps,
        }
    }
}

/// Layouts, and the pipelines made so far, by their labels: a label and the dimensions say all that a pipeline depends on.
#[derive(Debug)]
pub(crate) struct Kernels {
    gpu: Gpu,
    tuning: Tuning,
    dims: Dims,
    product_layout: BindGroupLayout,
    embed_layout: BindGroupLayout,
    heads_layout: BindGroupLayout,
    attention_layout: BindGroupLayout,
    argmax_layout: BindGroupLayout,
    modules: HashMap<Source, ShaderModule>,
    pipelines: HashMap<String, ComputePipeline>,
}

impl Kernels {
    pub(crate) fn new(gpu: &Gpu, dims: Dims) -> Self {
        use Binding::{Read, Uniform, Write};
        let product = [Uniform, Uniform, Read, Write, Write, Read, Read, Read, Read];
        let embed = [Uniform, Uniform, Read, Write, Read, Read, Read];
        Self {
            gpu: gpu.clone(),
            tuning: gpu.tuning(),
            dims,
            product_layout: layout(gpu, "product", &product),
            embed_layout: layout(gpu, "embed", &embed),
            heads_layout: layout(gpu, "heads", &[Uniform, Read, Read, Read, Write, Write]),
            attention_layout: layout(gpu, "attention", &[Uniform, Read, Read, Write]),
            argmax_layout: layout(gpu, "argmax", &[Read, Write, Write]),
            modules: HashMap::new(),
            pipelines: HashMap::new(),
        }
    }

    /// Threads that share a pair of rows.
    fn lanes(&self, rows: Rows) -> u32 {
        match rows {
            Rows::Last => self.tuning.row_lanes,
            Rows::Tiles => self.tuning.tile_lanes,
        }
    }

    /// Workgroups that `n_pairs` pairs of rows take.
    pub(crate) fn product_groups(&self, rows: Rows, n_pairs: usize) -> u32 {
        (n_pairs as u32).div_ceil(self.tuning.wg / self.lanes(rows))
    }

    /// The pipeline of a product.
    pub(crate) fn product(&mut self, key: Product) -> ComputePipeline {
        let float = key.dtype.block_len() == 1;
        let source = match (key.rows, float) {
            (Rows::Last, false) => ROW_QUANT,
            (Rows::Last, true) => ROW_FLOAT,
            (Rows::Tiles, false) => TILE_QUANT,
            (Rows::Tiles, true) => TILE_FLOAT,
        };
        let Dims {
            n_head,
            n_kv_head,
            head_dim,
            n_ctx,
            norm_eps,
            ..
        } = self.dims;
        let constants = [
            ("FORMAT", format_id(key.dtype)),
            ("NORM", f64::from(key.norm as u32)),
            ("NORM_EPS", f64::from(norm_eps)),
            ("EPILOGUE", f64::from(key.epilogue as u32)),
            ("HAS_BIAS", f64::from(u8::from(key.has_bias))),
            ("WG", f64::from(self.tuning.wg)),
            ("LANES", f64::from(self.lanes(key.rows))),
            ("N_Q", (n_head * head_dim) as f64),
            ("N_KV", (n_kv_head * head_dim) as f64),
            ("HEAD_DIM", head_dim as f64),
            ("N_CTX", n_ctx as f64),
        ];
        let layout = self.product_layout.clone();
        self.pipeline(&format!("{key:?}"), source, &layout, &constants)
    }

    /// The pipeline that looks tokens up, and its workgroup's threads.
    pub(crate) fn embed(&mut self, dtype: DType, has_position: bool) -> (ComputePipeline, u32) {
        let source = if dtype.block_len() == 1 {
            EMBED_FLOAT
        } else {
            EMBED_QUANT
        };
        let constants = [
            ("FORMAT", format_id(dtype)),
            ("HAS_POSITION", f64::from(u8::from(has_position))),
            ("WG", f64::from(PLAIN_WG)),
        ];
        let layout = self.embed_layout.clone();
        (
            self.pipeline("embed", source, &layout, &constants),
            PLAIN_WG,
        )
    }

    /// The pipeline between the projection to q, k and v and the attention.
    pub(crate) fn heads(&mut self, step: HeadStep) -> ComputePipeline {
        let Dims {
            n_head,
            n_kv_head,
            head_dim,
            n_ctx,
            norm_eps,
            ..
        } = self.dims;
        let constants = [
            ("WG", f64::from(PLAIN_WG)),
            ("HALVES", f64::from(u8::from(step.halves))),
            ("HAS_NORM", f64::from(u8::from(step.norm))),
            ("NORM_EPS", f64::from(norm_eps)),
            ("N_HEAD", n_head as f64),
            ("N_KV_HEAD", n_kv_head as f64),
            ("HEAD_DIM", head_dim as f64),
            ("N_CTX", n_ctx as f64),
        ];
        let layout = self.heads_layout.clone();
        self.pipeline(&format!("{step:?}"), HEADS, &layout, &constants)
    }

    /// The pipeline of attention.
    pub(crate) fn attention(&mut self) -> ComputePipeline {
        let Dims {
            n_head,
            n_kv_head,
            head_dim,
            n_ctx,
            ..
        } = self.dims;
        let wg = self
            .tuning
            .attention_wg
            .max((head_dim as u32 / 2).next_power_of_two());
        let constants = [
            ("WG", f64::from(wg)),
            ("N_HEAD", n_head as f64),
            ("N_KV_HEAD", n_kv_head as f64),
            ("HEAD_DIM", head_dim as f64),
            ("N_CTX", n_ctx as f64),
            ("SCALE", f64::from(1.0 / (head_dim as f32).sqrt())),
        ];
        let layout = self.attention_layout.clone();
        self.pipeline("attention", ATTENTION, &layout, &constants)
    }

    /// The pipeline of the greedy choice.
    pub(crate) fn argmax(&mut self) -> ComputePipeline {
        let constants = [("WG", 256.0), ("VOCAB", self.dims.vocab_size as f64)];
        let layout = self.argmax_layout.clone();
        self.pipeline("argmax", ARGMAX, &layout, &constants)
    }

    /// `[part, step, vectors, y, kv, rope, x, weights, scales]`.
    pub(crate) fn bind_product(&self, buffers: [&Buffer; 9]) -> BindGroup {
        self.bind(&self.product_layout, &buffers)
    }

    /// `[part, step, tokens, y, positions, weights, scales]`.
    pub(crate) fn bind_embed(&self, buffers: [&Buffer; 7]) -> BindGroup {
        self.bind(&self.embed_layout, &buffers)
    }

    /// `[step, qkv, norms, rope, q, kv]`.
    pub(crate) fn bind_heads(&self, buffers: [&Buffer; 6]) -> BindGroup {
        self.bind(&self.heads_layout, &buffers)
    }

    /// `[step, q, kv, y]`.
    pub(crate) fn bind_attention(&self, buffers: [&Buffer; 4]) -> BindGroup {
        self.bind(&self.attention_layout, &buffers)
    }

    /// `[logits, tokens, step]`.
    pub(crate) fn bind_argmax(&self, buffers: [&Buffer; 3]) -> BindGroup {
        self.bind(&self.argmax_layout, &buffers)
    }

    fn bind(&self, layout: &BindGroupLayout, buffers: &[&Buffer]) -> BindGroup {
        let entries: Vec<_> = (0..)
            .zip(buffers)
            .map(|(binding, buffer)| wgpu::BindGroupEntry {
                binding,
                resource: buffer.as_entire_binding(),
            })
            .collect();
        self.gpu
            .device
            .create_bind_group(&wgpu::BindGroupDescriptor {
                label: None,
                layout,
                entries: &entries,
            })
    }

    /// The pipeline of this name, made at its first use.
    fn pipeline(
        &mut self,
        label: &str,
        source: Source,
        layout: &BindGroupLayout,
        constants: &[(&str, f64)],
    ) -> ComputePipeline {
        if let Some(pipeline) = self.pipelines.get(label) {
            return pipeline.clone();
        }
        let device = &self.gpu.device;
        let module = self.modules.entry(source).or_insert_with(|| {
            let source = wgpu::ShaderSource::Wgsl(source.join("\n").into());
            device.create_shader_module(wgpu::ShaderModuleDescriptor {
                label: Some(label),
                source,
            })
        });
        // Naming a constant that the shader does not declare is an error, and not every shader needs each.
        let constants: Vec<_> = constants
            .iter()
            .copied()
            .filter(|(name, _)| {
                let declared = format!("override {name}:");
                source.iter().any(|file| file.contains(&declared))
            })
            .collect();
        let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(label),
            bind_group_layouts: &[Some(layout)],
            immediate_size: 0,
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(label),
            layout: Some(&layout),
            module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &constants,
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        });
        self.pipelines.insert(label.to_owned(), pipeline.clone());
        pipeline
    }
}

#[derive(Debug, Clone, Copy)]
enum Binding {
    Uniform,
    Read,
    Write,
}

fn layout(gpu: &Gpu, label: &str, bindings: &[Binding]) -> BindGroupLayout {
    use wgpu::BufferBindingType::{Storage, Uniform};
    let entries: Vec<_> = (0..)
        .zip(bindings)
        .map(|(binding, kind)| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: match kind {
                    Binding::Uniform => Uniform,
                    Binding::Read => Storage { read_only: true },
                    Binding::Write => Storage { read_only: false },
                },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        })
        .collect();
    gpu.device
        .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(label),
            entries: &entries,
        })
}

/// Types that the shaders read. Models with others run on the CPU.
pub(crate) const SHADER_TYPES: [DType; 6] = [
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::Q8_0,
    DType::Q4_1,
    DType::Q4_0,
];

/// `FORMAT` of `quant_blocks.wgsl` or `float_rows.wgsl`.
fn format_id(dtype: DType) -> f64 {
    match dtype {
        DType::F16 | DType::Q4_0 => 1.0,
        DType::BF16 | DType::Q4_1 => 2.0,
        _ => 0.0,
    }
}
