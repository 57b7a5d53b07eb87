//! What the project's HTML pages share: their look, and how they are made of templates. Each is one file, without a request.

use anyhow::{Context, Result};
use minijinja::{AutoEscape, Environment, Value, value::Serde};
use serde::Serialize;

/// Renders a page after the parts that pages share (macros `head`, `style`, `figure`); every value is escaped.
///
/// # Errors
/// When the template is wrong, which is a mistake of ours.
pub fn render(page: &str, context: Value) -> Result<String> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    let source = format!("{}{page}", include_str!("parts.html"));
    let page = environment.render_str(&source, context);
    page.context("the page could not be made")
}

/// Something as a template sees it.
pub fn of<T: Serialize>(value: T) -> Value {
    Value::from(Serde(value))
}

/// Data for a script of the page, safe within a `script` element.
///
/// # Errors
/// When it cannot be JSON.
pub fn script_data<T: Serialize>(value: &T) -> Result<Value> {
    let json = serde_json::to_string(value)?;
    // Nothing in it can end the element or begin a comment.
    Ok(Value::from_safe_string(json.replace('<', "\\u003c")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::context;

    #[test]
    fn values_are_escaped_and_data_stays_in_its_element() {
        let page = render("{{ head('a<b') }}{{ x }}", context! { x => "<script>" }).unwrap();
        assert!(page.contains("a&lt;b") && page.contains("&lt;script&gt;"));
        assert!(page.contains("default-src 'none'") && !page.contains("script-src"));
        let data = script_data(&"</script><!--").unwrap();
        let page = render("{{ head('a', true) }}{{ data }}", context! { data }).unwrap();
        assert!(page.contains(r#""\u003c/script>\u003c!--""#), "{page}");
        assert!(page.contains("script-src 'unsafe-inline'"));
    }
}
