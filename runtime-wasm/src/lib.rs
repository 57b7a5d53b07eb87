//! The browser runtime: the WebGPU engine, which also runs natively (that is how it is tested), the CPU fallback, and the
//! exports to JavaScript. This file alone knows JavaScript; its classes are "The browser boundary" of ARCHITECTURE.md.
#![warn(missing_docs)]

pub mod engine;
pub mod error;
pub mod gpu;
mod kernels;
#[cfg(test)]
mod kernels_tests;
pub mod loader;
pub mod options;
pub mod run;
mod weights;

#[cfg(target_arch = "wasm32")]
mod exports {
    use crate::{
        error::RuntimeError,
        gpu::Gpu,
        loader::{self, Target},
        options::{self, Options},
        run::{Engine, Run},
    };
    use fledgling_core::{chat::Message, generate, model::ModelInfo};
    use std::{
        cell::{Cell, RefCell},
        rc::Rc,
    };
    use wasm_bindgen::prelude::*;

    /// A JavaScript `Error` with the error's code.
    fn js_error(error: &RuntimeError) -> JsValue {
        let js = js_sys::Error::new(&error.to_string());
        // Setting a property of a fresh Error cannot fail.
        let _ = js_sys::Reflect::set(&js, &"code".into(), &error.code().into());
        js.into()
    }

    fn thrown<T>(result: Result<T, RuntimeError>) -> Result<T, JsValue> {
        result.map_err(|e| js_error(&e))
    }

    fn parse_json(json: &str) -> Result<JsValue, JsValue> {
        js_sys::JSON::parse(json)
    }

    /// A value as JSON text; `undefined` is empty.
    fn to_json(value: &JsValue) -> Result<String, JsValue> {
        if value.is_undefined() {
            return Ok(String::new());
        }
        let text = js_sys::JSON::stringify(value).map_err(|_| {
            js_error(&RuntimeError::BadOption(
                "the value is no plain data".to_owned(),
            ))
        })?;
        Ok(text.into())
    }

    /// Lets the event loop handle messages; `setTimeout` would wait 4 ms.
    async fn pause() {
        let Ok(channel) = web_sys::MessageChannel::new() else {
            return;
        };
        let promise =
            js_sys::Promise::new(&mut |resolve, _| channel.port1().set_onmessage(Some(&resolve)));
        if channel.port2().post_message(&JsValue::NULL).is_ok() {
            let _ = wasm_bindgen_futures::JsFuture::from(promise).await;
        }
        channel.port1().close();
    }

    #[wasm_bindgen]
    extern "C" {
        #[wasm_bindgen(js_namespace = console, js_name = error)]
        fn log_error(text: &str);
    }

    /// Says where a panic happened, which is a bug of ours, before the trap ends everything.
    #[wasm_bindgen(start)]
    pub(crate) fn start() {
        std::panic::set_hook(Box::new(|info| log_error(&format!("fledgling: {info}"))));
    }

    /// Takes a model's bytes.
    #[wasm_bindgen]
    pub struct Loader {
        inner: Option<loader::Loader>,
    }

    #[wasm_bindgen]
    impl Loader {
        /// Asks for the device: `auto`, `webgpu` or `cpu`.
        pub async fn create(device: String) -> Result<Loader, JsValue> {
            let target = match device.as_str() {
                "cpu" => Target::Cpu { reason: None },
                "webgpu" => Target::Gpu(thrown(Gpu::open().await)?),
                "auto" => match Gpu::open().await {
                    Ok(gpu) => Target::Auto(gpu),
                    Err(error) => Target::Cpu {
                        reason: Some(error.to_string()),
                    },
                },
                _ => {
                    return Err(js_error(&RuntimeError::BadOption(format!(
                        "unknown device `{device}`"
                    ))));
                }
            };
            Ok(Loader {
                inner: Some(loader::Loader::new(target)),
            })
        }

        /// The next bytes of the file.
        pub fn push(&mut self, chunk: &[u8]) -> Result<(), JsValue> {
            let inner = self
                .inner
                .as_mut()
                .ok_or_else(|| js_error(&RuntimeError::Disposed))?;
            thrown(inner.push(chunk))
        }

        /// The size of the file, once the header is there.
        #[wasm_bindgen(getter, js_name = fileBytes)]
        pub fn file_bytes(&self) -> Option<f64> {
            Some(self.inner.as_ref()?.file_bytes()? as f64)
        }

        /// Builds the engine.
        pub async fn finish(mut self, n_ctx: Option<u32>) -> Result<Model, JsValue> {
            let inner = self
                .inner
                .take()
                .ok_or_else(|| js_error(&RuntimeError::Disposed))?;
            let loaded = thrown(inner.finish(n_ctx.map(|n| n as usize)).await)?;
            Ok(Model {
                info_json: options::info_json(&loaded),
                device_json: options::device_json(&loaded),
                n_ctx: loaded.n_ctx,
                info: loaded.info,
                shared: Rc::new(Shared {
                    engine: RefCell::new(Some(loaded.engine)),
                    busy: Cell::new(false),
                    disposed: Cell::new(false),
                }),
            })
        }
    }

    /// What a model and its generation share. The engine is taken out while it computes.
    struct Shared {
        engine: RefCell<Option<Engine>>,
        busy: Cell<bool>,
        disposed: Cell<bool>,
    }

    /// A loaded model.
    #[wasm_bindgen]
    pub struct Model {
        info: ModelInfo,
        info_json: String,
        device_json: String,
        n_ctx: usize,
        shared: Rc<Shared>,
    }

    #[wasm_bindgen]
    impl Model {
        /// What the file says about the model.
        #[wasm_bindgen(getter)]
        pub fn info(&self) -> Result<JsValue, JsValue> {
            parse_json(&self.info_json)
        }

        /// Where it computes.
        #[wasm_bindgen(getter)]
        pub fn device(&self) -> Result<JsValue, JsValue> {
            parse_json(&self.device_json)
        }

        /// Starts to write on after a prompt.
        pub fn complete(&self, prompt: &str, options: &JsValue) -> Result<Generation, JsValue> {
            self.generate(&self.info.encode_prompt(prompt), options)
        }

        /// Starts to answer a conversation.
        pub fn chat(&self, messages: &JsValue, options: &JsValue) -> Result<Generation, JsValue> {
            let messages: Vec<Message> =
                serde_json::from_str(&to_json(messages)?).map_err(|e| {
                    js_error(&RuntimeError::BadOption(format!(
                        "the messages are not understood: {e}"
                    )))
                })?;
            let prompt = self
                .info
                .encode_chat(&messages)
                .map_err(|e| js_error(&RuntimeError::from(&e)))?;
            self.generate(&prompt, options)
        }

        /// The ids of a text, as a prompt has them.
        pub fn tokenize(&self, text: &str) -> Vec<u32> {
            self.info.encode_prompt(text)
        }
    }

    impl Model {
        fn generate(&self, prompt: &[u32], options: &JsValue) -> Result<Generation, JsValue> {
            if self.shared.busy.get() {
                return Err(js_error(&RuntimeError::Busy));
            }
            let options = thrown(Options::parse(&to_json(options)?))?;
            let generation = generate::Generation::new(
                self.info.tokenizer.clone(),
                prompt,
                self.n_ctx,
                &options.params(),
            )
            .map_err(|e| js_error(&RuntimeError::from(&e)))?;
            self.shared.busy.set(true);
            Ok(Generation {
                state: Rc::new(State {
                    prompt: prompt.to_vec(),
                    run: RefCell::new(Some(Run::new(generation, options.max_tokens()))),
                    cancelled: Cell::new(false),
                    holds_model: Cell::new(true),
                    shared: Rc::clone(&self.shared),
                }),
            })
        }
    }

    impl Drop for Model {
        fn drop(&mut self) {
            self.shared.disposed.set(true);
            self.shared.engine.borrow_mut().take();
        }
    }

    /// A text being written.
    #[wasm_bindgen]
    pub struct Generation {
        state: Rc<State>,
    }

    struct State {
        prompt: Vec<u32>,
        run: RefCell<Option<Run>>,
        cancelled: Cell<bool>,
        /// Whether the model is still busy because of this generation.
        holds_model: Cell<bool>,
        shared: Rc<Shared>,
    }

    impl State {
        fn release(&self) {
            if self.holds_model.replace(false) {
                self.shared.busy.set(false);
            }
        }

        async fn next(&self) -> Result<JsValue, RuntimeError> {
            let shared = &self.shared;
            if shared.disposed.get() {
                return Err(RuntimeError::Disposed);
            }
            if !self.holds_model.get() {
                return Ok(JsValue::UNDEFINED);
            }
            let Some(mut run) = self.run.borrow_mut().take() else {
                return Err(RuntimeError::Busy);
            };
            let Some(mut engine) = shared.engine.borrow_mut().take() else {
                return Err(RuntimeError::Busy);
            };
            let step = run
                .next(
                    &mut engine,
                    &|| self.cancelled.get() || shared.disposed.get(),
                    &pause,
                )
                .await;
            if !shared.disposed.get() {
                *shared.engine.borrow_mut() = Some(engine);
            }
            let over = !matches!(&step, Ok(Some(step)) if step.finish.is_none());
            *self.run.borrow_mut() = Some(run);
            if over || self.cancelled.get() {
                self.release();
            }
            match step? {
                Some(step) => parse_json(&options::step_json(&step))
                    .map_err(|_| RuntimeError::Internal("a step is no JSON".to_owned())),
                None => Ok(JsValue::UNDEFINED),
            }
        }
    }

    #[wasm_bindgen]
    impl Generation {
        /// The ids that the text is written after.
        #[wasm_bindgen(getter, js_name = promptTokens)]
        pub fn prompt_tokens(&self) -> Vec<u32> {
            self.state.prompt.clone()
        }

        /// The next token; `undefined` after the last, or once cancelled.
        pub fn next(&self) -> js_sys::Promise {
            let state = Rc::clone(&self.state);
            wasm_bindgen_futures::future_to_promise(async move {
                state.next().await.map_err(|e| js_error(&e))
            })
        }

        /// Stops within a token.
        pub fn cancel(&self) {
            self.state.cancelled.set(true);
        }
    }

    impl Drop for Generation {
        fn drop(&mut self) {
            self.state.cancelled.set(true);
            // A step under way releases the model when it ends.
            if self.state.run.borrow_mut().take().is_some() {
                self.state.release();
            }
        }
    }
}
