//! `/openapi.json`, and `/docs`: one page without any request off the site,
//! rendered on the server from the same document, so the two can't disagree.

use crate::api::error::Problem;
use crate::api::service::Service;
use axum::Router;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::Value;
use std::fmt::Write;
use utoipa::OpenApi;
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Neural Fabric",
        description = "Schedules model-serving work onto a GPU cluster. Any member takes each call. Every answer says whether it is a simulation."
    ),
    components(schemas(Problem))
)]
pub struct Description;

/// The document with what holds for every operation: anything else is a problem.
pub fn complete(mut openapi: utoipa::openapi::OpenApi) -> utoipa::openapi::OpenApi {
    openapi.info.version = env!("CARGO_PKG_VERSION").to_owned();
    let content = ContentBuilder::new().schema(Some(RefOr::Ref(Ref::from_schema_name("Problem")))).build();
    let problem = ResponseBuilder::new()
        .description("Anything else: 400 bad input, 404 absent, 409 conflict, 413, 415, 429 and 503 with Retry-After")
        .content("application/problem+json", content)
        .build();
    for item in openapi.paths.paths.values_mut() {
        let operations =
            [&mut item.get, &mut item.post, &mut item.put, &mut item.delete].into_iter().filter_map(|o| o.as_mut());
        for operation in operations {
            operation.responses.responses.insert("default".to_owned(), RefOr::T(problem.clone()));
        }
    }
    openapi
}

/// Both documents, made once.
pub struct Docs {
    json: String,
    html: String,
}

impl Docs {
    pub fn new(openapi: utoipa::openapi::OpenApi) -> Self {
        let json = complete(openapi).to_json().unwrap_or_default();
        let value = serde_json::from_str(&json).unwrap_or_default();
        Self { html: page(&value), json }
    }

    pub fn router(self) -> Router<Service> {
        let (json, html) = (self.json, self.html);
        Router::new()
            .route("/openapi.json", get(move || answer("application/json", json.clone())))
            .route("/docs", get(move || answer("text/html; charset=utf-8", html.clone())))
    }
}

async fn answer(kind: &'static str, text: String) -> Response {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy)),
    ];
    (headers, text).into_response()
}

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;\
color:#1a1a1a;background:#fff}code,pre{font:14px/1.4 ui-monospace,monospace}summary{cursor:pointer;padding:.4rem 0}\
details{border-top:1px solid #ccc}b{display:inline-block;min-width:4.5rem}pre{background:#f3f3f3;padding:.6rem;\
overflow:auto}table{border-collapse:collapse}td{padding:.1rem .8rem .1rem 0;vertical-align:top}\
@media(prefers-color-scheme:dark){body{color:#eee;background:#16181c}pre{background:#24272d}details{border-color:#444}\
a{color:#8ab4ff}}";

fn page(doc: &Value) -> String {
    let mut out = String::with_capacity(64 << 10);
    let (title, version) = (text(&doc["info"]["title"]), text(&doc["info"]["version"]));
    let _ = write!(
        out,
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>{title} API</title><style>{STYLE}</style><h1>{title} API</h1><p>{} Version {version}. \
         <a href=\"/openapi.json\">openapi.json</a></p>",
        text(&doc["info"]["description"])
    );
    for (path, item) in doc["paths"].as_object().into_iter().flatten() {
        for (method, operation) in item.as_object().into_iter().flatten() {
            one(&mut out, path, method, operation);
        }
    }
    out.push_str("<h2>Shapes</h2>");
    for (name, schema) in doc["components"]["schemas"].as_object().into_iter().flatten() {
        let pretty = serde_json::to_string_pretty(schema).unwrap_or_default();
        let name = escape(name);
        let _ = write!(
            out,
            "<details id=\"{name}\"><summary><code>{name}</code></summary><pre>{}</pre></details>",
            escape(&pretty)
        );
    }
    out
}

fn one(out: &mut String, path: &str, method: &str, operation: &Value) {
    let method = escape(&method.to_uppercase());
    let _ = write!(
        out,
        "<details><summary><b>{method}</b> <code>{}</code> {}</summary><p>{}</p><table>",
        escape(path),
        text(&operation["summary"]),
        text(&operation["description"])
    );
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        let _ = write!(
            out,
            "<tr><td><code>{}</code><td>{}<td>{}",
            text(&parameter["name"]),
            text(&parameter["in"]),
            text(&parameter["description"])
        );
    }
    let body = &operation["requestBody"]["content"]["application/json"]["schema"]["$ref"];
    if let Some(name) = shape(body) {
        let _ = write!(out, "<tr><td>body<td><td><a href=\"#{name}\">{name}</a>");
    }
    for (code, response) in operation["responses"].as_object().into_iter().flatten() {
        let schema = response["content"].as_object().and_then(|content| content.values().next());
        let name = schema.and_then(|schema| shape(&schema["schema"]["$ref"]));
        let link = name.map(|name| format!("<a href=\"#{name}\">{name}</a>")).unwrap_or_default();
        let _ = write!(out, "<tr><td>{}<td>{link}<td>{}", escape(code), text(&response["description"]));
    }
    out.push_str("</table></details>");
}

fn shape(reference: &Value) -> Option<String> {
    reference.as_str()?.rsplit('/').next().map(escape)
}

fn text(value: &Value) -> String {
    escape(value.as_str().unwrap_or(""))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::openapi;
    use super::*;

    #[test]
    fn the_document_resolves_and_the_page_asks_for_nothing_outside() {
        let json = openapi().to_json().unwrap();
        let doc: Value = serde_json::from_str(&json).unwrap();
        let schemas = doc["components"]["schemas"].as_object().unwrap();
        for part in json.split("\"#/components/schemas/").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(schemas.contains_key(name), "{name} is referred to and not there");
        }
        for path in ["/schedule", "/schedule/{request_id}", "/node/register", "/failover/promote", "/metrics"] {
            assert!(doc["paths"][path].is_object(), "{path}");
        }
        let html = page(&doc);
        assert!(!html.contains("http://") && !html.contains("https://") && !html.contains("<script"));
        assert!(html.contains("/failover/promote"));
    }
}
