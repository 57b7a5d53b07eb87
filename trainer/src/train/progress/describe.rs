//! What a run says of itself when it begins.

use crate::{
    report::{
        environment::Environment,
        events::{Begin, DataFile},
    },
    train::{
        data::Rows,
        fit::{Fit, count_trained},
        model::{Transformer, visit_parameters},
        steps::n_steps,
    },
};
use burn::tensor::Device;
use std::path::PathBuf;

impl Begin {
    /// A run that goes on after `step`.
    pub fn of(fit: &Fit, model: &Transformer, step: u64) -> Self {
        let mut parameters = 0;
        visit_parameters(model, |_, value, _| {
            parameters += value.shape().num_elements() as u64;
        });
        let (config, n_rows) = (&fit.config, fit.train.n_shown());
        let rows_per_step = config.train.batch * config.train.accumulate;
        let mut data = vec![data_file("train", &config.data.train, &fit.train)];
        if !fit.valid.is_empty() {
            data.push(data_file("valid", &config.data.valid, &fit.valid));
        }
        Self {
            step,
            steps: n_steps(config, n_rows),
            steps_per_epoch: n_rows as f64 / rows_per_step as f64,
            run: config.name.clone(),
            mode: fit.record.mode.clone(),
            base: config.base.clone(),
            device: device_name(&fit.device),
            parameters,
            trained_parameters: count_trained(model) as u64,
            data,
            environment: Environment::here(config.threads),
        }
    }
}

/// `cpu`, or what Burn calls it.
fn device_name(device: &Device) -> String {
    let name = format!("{:?}", device.clone().inner());
    let name = name.strip_prefix("Device<").unwrap_or(&name);
    match name.strip_suffix('>').unwrap_or(name) {
        "Flex(Cpu)" => "cpu".to_owned(),
        name => name.to_owned(),
    }
}

fn data_file(part: &str, paths: &[PathBuf], rows: &Rows) -> DataFile {
    DataFile {
        part: part.to_owned(),
        paths: paths.to_vec(),
        rows: rows.len() as u64,
        tokens: (0..rows.len())
            .map(|idx| rows.n_tokens_of(idx) as u64)
            .sum(),
        counted: rows.n_counted() as u64,
    }
}
