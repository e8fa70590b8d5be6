//! Makes the data set of the day that `tests/day.rs` lives through: the same bytes from the same seed, whenever it runs.

use serde_json::{Value, json};

/// Another seed, another day.
const SEED: u64 = 0x7ade_9057;
const AGENTS: usize = 60;
const OUTSIDERS: usize = 8;
const TRANSACTIONS: usize = 4_000;
const CAPABILITIES: [&str; 12] = [
    "python",
    "sql",
    "rust",
    "translation",
    "vision",
    "speech",
    "search",
    "summaries",
    "planning",
    "maths",
    "law",
    "übersetzung",
];
const CURRENCIES: [&str; 5] = ["USD", "EUR", "JPY", "USDC", "TOKEN2"];

/// The three files, as text.
pub struct DataSet {
    pub agents: String,
    pub transactions: String,
    pub transitions: String,
}

/// splitmix64, which fits in five lines and needs no dependency whose next version draws other numbers.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("it is below a usize")
    }

    fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }
}

/// Makes all of it.
pub fn generate() -> DataSet {
    let mut chance = Chance(SEED);
    let agents: Vec<String> = (0..AGENTS).map(|number| agent(number, &mut chance).to_string()).collect();
    let transactions: Vec<(String, String)> =
        (0..TRANSACTIONS).map(|number| transaction(number, &mut chance)).collect();
    let ids: Vec<&str> = transactions.iter().map(|(id, _)| id.as_str()).collect();
    let lines: Vec<&str> = transactions.iter().map(|(_, line)| line.as_str()).collect();
    DataSet {
        agents: format!("[\n{}\n]\n", agents.join(",\n")),
        transactions: lines.join("\n") + "\n",
        transitions: transitions(&ids, &mut chance).join("\n") + "\n",
    }
}

/// One agent and what others made of it. Prices and scores come from short lists, so that there are ties.
fn agent(number: usize, chance: &mut Chance) -> Value {
    let count = chance.below(4);
    let capabilities: Vec<String> = (0..count)
        .map(|_| {
            let capability = chance.of(&CAPABILITIES);
            chance.of(&[capability.to_owned(), capability.to_uppercase(), format!(" {capability} ")])
        })
        .collect();
    let mut registration = json!({
        "agent_id": format!("agent-{number:02}"),
        "name": chance.of(&["Thon", "Ada", "Žižek & søn", "agent \"x\""]),
        "capabilities": capabilities,
        "cost_per_task": chance.of(&[json!("0"), json!("1.25"), json!(2), json!("2.0"), json!(0.5), json!("12.500"), json!("1e-7"), json!(18)]),
        "currency": chance.of(&CURRENCIES),
        "capacity_per_hour": chance.of(&[1, 10, 30, 30, 500]),
        "availability": chance.of(&["online", "online", "online", "busy", "offline", "maintenance"]),
    });
    if number.is_multiple_of(3) {
        registration["metadata"] = json!({"region": chance.of(&["eu", "us"]), "n": number});
        registration["billing_notes"] = chance.of(&[json!("net 30"), Value::Null]);
    }
    // The last few are gone before the day begins.
    let is_gone = number >= AGENTS - 4;
    if is_gone {
        registration["ttl_seconds"] = json!(1);
    }
    let outcomes = if is_gone { 0 } else { chance.below(7) };
    let outcomes: Vec<Value> = (0..outcomes)
        .map(|_| match chance.below(3) {
            0 => json!({"success": chance.below(4) > 0}),
            _ => json!({"success": chance.below(4) > 0, "weight": chance.of(&["0.25", "0.5", "1.75"]).parse::<f64>().expect("a number")}),
        })
        .collect();
    let deltas: Vec<f64> = if is_gone || !number.is_multiple_of(5) { Vec::new() } else { vec![1.5, -0.25] };
    json!({"registration": registration, "outcomes": outcomes, "deltas": deltas})
}

/// A line of `transactions.ndjson` and the id in it. Amounts are written in every way that JSON has, unknown to `json!`.
fn transaction(number: usize, chance: &mut Chance) -> (String, String) {
    let id = format!("{:08x}-{number}", chance.next() >> 32);
    let mut party = || match chance.below(AGENTS + OUTSIDERS) {
        outsider if outsider >= AGENTS => format!("Outsider_{}", outsider - AGENTS),
        number => format!("agent-{number:02}"),
    };
    let (payer, provider) = (party(), party());
    let capability = chance.of(&CAPABILITIES);
    let capability = match chance.below(10) {
        0 => format!("  {} ", capability.to_uppercase()),
        _ => capability.to_owned(),
    };
    let cents = chance.below(100_000) + 1;
    let amount = match chance.below(12) {
        0 => "0.1".to_owned(),
        1 => "0.2".to_owned(),
        2 => "1e-7".to_owned(),
        3 => "\"1E2\"".to_owned(),
        4 => format!("\"{cents}.000000001\""),
        5 if number % 40 == 5 => "123456789012345678.123456789".to_owned(),
        6 => format!("{cents}"),
        7 => format!("\"{cents}.50\""),
        _ => format!("{}.{:02}", cents / 100, cents % 100),
    };
    let mut line = format!(
        r#"{{"transaction_id":"{id}","payer_agent":"{payer}","provider_agent":"{provider}","capability":{},"amount":{amount}"#,
        json!(capability)
    );
    if chance.below(3) > 0 {
        line += &format!(r#","currency":"{}""#, chance.of(&CURRENCIES));
    }
    match chance.below(6) {
        0 => line += &format!(r#","context":{{"task_id":"t{number}"}}"#),
        1 => line += r#","context":{"nested":{"n":1.10,"list":[null,true,"é"]}}"#,
        _ => {}
    }
    (id, line + "}")
}

/// Lines of `transitions.ndjson`: what the parties try to do, some of it not allowed. Those of one transaction stand in
/// order, with those of others between them.
fn transitions(ids: &[&str], chance: &mut Chance) -> Vec<String> {
    let mut rounds: Vec<Vec<String>> = Vec::new();
    for id in ids {
        let plan: &[&str] = match chance.below(20) {
            0..=6 => &["settle"],
            7 => &["cancel"],
            8 => &["cancel-for-a-reason", "settle"],
            9 => &["dispute"],
            10 => &["dispute-with-evidence", "evidence", "evidence"],
            11 => &["dispute-with-evidence", "resolve-settled", "cancel"],
            12 => &["settle", "dispute-with-evidence", "evidence", "resolve-cancelled", "dispute"],
            13 => &["settle", "dispute", "resolve-settled", "dispute-with-evidence", "evidence", "resolve-cancelled"],
            14 => &["settle", "settle", "cancel", "evidence", "resolve-settled"],
            15 => &["evidence", "resolve-cancelled", "dispute", "dispute", "settle"],
            _ => &[],
        };
        for (turn, act) in plan.iter().enumerate() {
            if rounds.len() <= turn {
                rounds.push(Vec::new());
            }
            let (step, body) = match *act {
                "cancel-for-a-reason" => ("cancel", json!({"reason": "no longer needed"})),
                "dispute-with-evidence" => (
                    "dispute",
                    json!({"reason": "late", "evidence": [format!("log {turn} of {id}"), format!("photo {turn}")]}),
                ),
                "evidence" => ("evidence", json!({"evidence": [format!("witness {turn} of {id}")]})),
                "resolve-settled" => ("resolve", json!({"outcome": "settled"})),
                "resolve-cancelled" => ("resolve", json!({"outcome": "cancelled", "note": "refunded"})),
                plain => (plain, Value::Null),
            };
            rounds[turn].push(json!({"transaction_id": id, "step": step, "body": body}).to_string());
        }
    }
    rounds.concat()
}
