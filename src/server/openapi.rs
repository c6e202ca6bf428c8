//! What the OpenAPI document says of access: taken from the rules themselves, not written down twice.

use axum::http::Method;
use utoipa::openapi::{
    Components, ContentBuilder, OpenApi, PathItem, Ref, RefOr, Response, ResponseBuilder,
    path::Operation,
    security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme},
};

use super::{access, tokens::Scope};

/// The name of the way in.
const BEARER: &str = "bearer";

/// Adds to every operation what it answers to those who may not ask.
pub(super) fn describe_access(document: &mut OpenApi) {
    let text = "A token with the scope that the operation names; `/t/TOKEN/` before the path does the \
                same. Where the server's settings allow it, none is needed.";
    let mut bearer = Http::new(HttpAuthScheme::Bearer);
    bearer.description = Some(text.to_owned());
    let components = document.components.get_or_insert_with(Components::new);
    components.add_security_scheme(BEARER, SecurityScheme::Http(bearer));
    for (path, item) in &mut document.paths.paths {
        for (method, operation) in operations(item) {
            describe(operation, access::needed(&method, path));
        }
    }
}

fn describe(operation: &mut Operation, scope: Option<Scope>) {
    let unknown = match scope {
        Some(_) => "A token is needed, or this one is not known",
        None => "No token is needed, but this one is not known",
    };
    let mut refusals = vec![("401", unknown.to_owned())];
    if let Some(scope) = scope {
        refusals.push(("403", format!("The token lacks the scope {scope}")));
        // In this order: nothing at all may do.
        let requirements =
            [SecurityRequirement::default(), SecurityRequirement::new(BEARER, [scope.name()])];
        operation.security = Some(requirements.into());
    }
    for (code, text) in refusals {
        operation.responses.responses.insert(code.to_owned(), RefOr::T(problem(&text)));
    }
}

fn problem(text: &str) -> Response {
    let schema = RefOr::Ref(Ref::from_schema_name("Error"));
    let content = ContentBuilder::new().schema(Some(schema)).build();
    ResponseBuilder::new().description(text).content("application/json", content).build()
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (Method, &mut Operation)> {
    [
        (Method::GET, &mut item.get),
        (Method::PUT, &mut item.put),
        (Method::POST, &mut item.post),
        (Method::DELETE, &mut item.delete),
        (Method::PATCH, &mut item.patch),
    ]
    .into_iter()
    .filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}
