//! What lies between Lambda's events and the router.

use lambda_http::{
    Request, RequestExt,
    http::{HeaderName, HeaderValue, Uri},
    request::RequestContext,
};

/// Gives a request the path that the router knows: without the stage that API Gateway's URLs begin with. Lambda's
/// request id becomes the answer's, so that both are found in one search of the logs.
pub(crate) fn route(mut request: Request) -> Request {
    if let Some(uri) = uri_without_stage(&request) {
        *request.uri_mut() = uri;
    }
    let id = request
        .lambda_context_ref()
        .map(|context| context.request_id.clone());
    if let Some(id) = id.and_then(|id| HeaderValue::try_from(id).ok()) {
        request
            .headers_mut()
            .entry(HeaderName::from_static("x-request-id"))
            .or_insert(id);
    }
    request
}

fn uri_without_stage(request: &Request) -> Option<Uri> {
    let raw = request.raw_http_path();
    let path = match request.request_context_ref()? {
        // `rawPath` of an HTTP API holds the stage, `path` of a REST API does not.
        RequestContext::ApiGatewayV2(context) => match context.stage.as_deref() {
            None | Some("$default") => raw,
            Some(stage) => raw
                .strip_prefix('/')
                .and_then(|rest| rest.strip_prefix(stage))
                .filter(|rest| rest.starts_with('/'))
                .unwrap_or(raw),
        },
        _ => raw,
    };
    let query = request
        .uri()
        .query()
        .map_or_else(String::new, |query| format!("?{query}"));
    format!("{path}{query}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lambda_http::request::from_str;

    fn uri_of(event: &str) -> String {
        route(from_str(event).unwrap()).uri().to_string()
    }

    #[test]
    fn the_stage_is_no_part_of_the_path() {
        let http_api = |stage: &str, path: &str| {
            format!(
                r#"{{"version":"2.0","routeKey":"$default","rawPath":"{path}","rawQueryString":"a=b","headers":{{"host":"x.execute-api.eu-west-1.amazonaws.com"}},
                "requestContext":{{"stage":"{stage}","http":{{"method":"GET","path":"{path}"}},"timeEpoch":0}},"isBase64Encoded":false}}"#
            )
        };
        assert_eq!(
            uri_of(&http_api("$default", "/v1/models")),
            "/v1/models?a=b"
        );
        assert_eq!(
            uri_of(&http_api("prod", "/prod/v1/models")),
            "/v1/models?a=b"
        );
        assert_eq!(uri_of(&http_api("v1", "/v1/v1/models")), "/v1/models?a=b");
        assert_eq!(uri_of(&http_api("v", "/v1/models")), "/v1/models?a=b");
    }

    #[test]
    fn a_rest_api_gives_the_path_without_it() {
        let event = r#"{"resource":"/{proxy+}","path":"/v1/models","httpMethod":"GET","headers":{"Host":"x.execute-api.eu-west-1.amazonaws.com"},
            "multiValueHeaders":{},"requestContext":{"stage":"v1","httpMethod":"GET","requestId":"r"},"isBase64Encoded":false}"#;
        assert_eq!(uri_of(event), "/v1/models");
    }
}
