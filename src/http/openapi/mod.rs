//! The OpenAPI document, made when the routes change and kept beside the code that it describes.
//!
//! Every handler and every body is described where it is written; a test makes the document of that and compares it with
//! the file. Making it anew at each start would cost every sidecar half a megabyte of code that runs once.

#[cfg(test)]
mod description;

/// The document as it is served.
pub(crate) const DOCUMENT: &str = include_str!("openapi.json");
