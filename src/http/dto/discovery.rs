//! What discovery asks for, read from the query.

use crate::domain::Capability;
use crate::domain::ranking::SearchQuery;
use crate::http::problem::Problem;
use crate::http::query::{self, Query, Value};

/// How many agents are recommended when the request does not say.
const DEFAULT_TOP_N: usize = 3;

/// A search and how many agents it may find.
#[derive(Debug, PartialEq)]
pub(crate) struct Search {
    pub(crate) query: SearchQuery,
    pub(crate) limit: usize,
}

impl Search {
    /// # Errors
    /// 400, 422.
    pub(crate) fn parse(mut parameters: Query) -> Result<Self, Problem> {
        let capabilities = parameters.repeated("capability");
        let max_cost = parameters.optional("max_cost")?;
        let currency = parameters.optional("currency")?;
        let availability = parameters.optional("availability")?;
        let min_score = parameters.optional("min_score")?;
        let limit = parameters.optional("limit")?;
        parameters.finish()?;

        Ok(Self {
            query: SearchQuery {
                capabilities: capabilities.iter().map(Value::capability).collect::<Result<_, _>>()?,
                max_cost: max_cost.map(|value| value.money()).transpose()?,
                currency: currency.map(|value| value.currency()).transpose()?,
                availability: availability.map(|value| value.availability()).transpose()?,
                min_score: min_score.map(|value| value.number()).transpose()?,
            },
            limit: query::limit(limit)?,
        })
    }
}

/// What a recommendation is for.
#[derive(Debug, PartialEq)]
pub(crate) struct Recommendation {
    pub(crate) capability: Capability,
    pub(crate) top_n: usize,
    pub(crate) include_busy: bool,
}

impl Recommendation {
    /// # Errors
    /// 400, 422.
    pub(crate) fn parse(mut parameters: Query) -> Result<Self, Problem> {
        let capability = parameters.required("capability")?;
        let top_n = parameters.optional("top_n")?;
        let include_busy = parameters.optional("include_busy")?;
        parameters.finish()?;

        Ok(Self {
            capability: capability.capability()?,
            top_n: top_n.map_or(Ok(DEFAULT_TOP_N), |value| value.count())?,
            include_busy: include_busy.map_or(Ok(false), |value| value.flag())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_takes_many_capabilities_and_bounds() {
        let query = Query::parse(Some("capability=Python&capability=sql&max_cost=1e1&min_score=4.5&limit=7")).unwrap();
        let search = Search::parse(query).unwrap();
        assert_eq!(search.query.capabilities.len(), 2);
        assert_eq!(search.query.max_cost.unwrap().to_string(), "10");
        assert_eq!((search.query.min_score, search.limit), (Some(4.5), 7));
    }

    #[test]
    fn a_recommendation_needs_a_capability() {
        let parse = |text: &str| Recommendation::parse(Query::parse(Some(text)).unwrap());
        let document = parse("top_n=0").unwrap_err().document();
        assert_eq!((document.status, document.field.as_deref()), (400, Some("capability")));
        for (text, field) in [
            ("capability=a&top_n=0", "top_n"),
            ("capability=a&top_n=1001", "top_n"),
            ("capability=a&include_busy=1", "include_busy"),
            ("capability=", "capability"),
        ] {
            let document = parse(text).unwrap_err().document();
            assert_eq!((document.status, document.field.as_deref()), (422, Some(field)), "{text}");
        }
        assert_eq!(parse("capability=a").unwrap().top_n, 3);
    }
}
