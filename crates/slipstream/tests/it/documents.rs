//! The README's tables of variables and `.env.example` say what the settings structs say, and the
//! operations manual lists every metric and every reason.

use service::Variable;

const README: &str = include_str!("../../../../README.md");
const OPERATIONS: &str = include_str!("../../../../docs/operations.md");
const ENV_EXAMPLE: &str = include_str!("../../../../.env.example");

fn processes() -> [(&'static str, &'static [Variable]); 4] {
    [
        ("Producer", producer::Settings::VARIABLES),
        ("Consumer", consumer::Settings::VARIABLES),
        ("Poller", poller::Settings::VARIABLES),
        ("Every process", service::config::COMMON),
    ]
}

fn table(variables: &[Variable]) -> String {
    let row = |variable: &Variable| {
        let or_file = if variable.kind.is_secret() {
            format!(", or `{}_FILE`", variable.name())
        } else {
            String::new()
        };
        let doc = variable.doc.trim().replace("  ", " ");
        format!("| `{}`{or_file} | {} | {doc} |\n", variable.name(), variable.kind.default_text())
    };
    let rows: String = variables.iter().map(row).collect();
    format!("| variable | default | meaning |\n|---|---|---|\n{rows}")
}

#[test]
fn the_readme_has_each_process_table_of_variables() {
    for (process, variables) in processes() {
        let right = format!("**{process}**\n\n{}", table(variables));
        assert!(README.contains(&right), "README.md must have:\n\n{right}");
    }
}

#[test]
fn the_example_of_an_env_file_names_only_variables_that_exist() {
    // Read by Compose or by the servers that it runs.
    let own = [
        "COMPOSE_PROFILES",
        "KAFKA_HEAP_OPTS",
        "MONGO_INITDB_ROOT_PASSWORD",
        "MONGO_INITDB_ROOT_USERNAME",
        "PRODUCER_PORT",
    ];
    let known: Vec<String> =
        processes().iter().flat_map(|(_, variables)| variables.iter().map(Variable::name)).collect();
    let lines = ENV_EXAMPLE.lines().map(|line| line.trim_start_matches(['#', ' ']));
    let names = lines.filter_map(|line| line.split_once('=')).map(|(name, _)| name);
    let names: Vec<&str> =
        names.filter(|name| name.chars().all(|c| c.is_ascii_uppercase() || c == '_')).collect();
    assert!(names.len() > 5, "{names:?}");
    for name in names {
        assert!(own.contains(&name) || known.iter().any(|known| known == name), "{name} is no variable");
    }
}

/// Every Rust source under `folder`, one after another.
/// The names that a file registers, without what the exposition adds to those of counters.
fn registered(source: &str) -> Vec<String> {
    let name = |rest: &str| {
        let unit = if rest.starts_with("_with_unit") { "_seconds" } else { "" };
        let literal = rest.split_once("(")?.1.trim_start().strip_prefix('"')?.split('"').next()?;
        Some(format!("slipstream_{literal}{unit}"))
    };
    source.split(".register").skip(1).filter_map(name).collect()
}

#[test]
fn the_operations_manual_lists_every_metric() {
    for source in [
        include_str!("../../../producer/src/metrics.rs"),
        include_str!("../../../consumer/src/metrics.rs"),
        include_str!("../../../poller/src/metrics.rs"),
    ] {
        let names = registered(source);
        assert!(names.len() >= 4, "{names:?}");
        for name in names {
            let found = ["`", "{", "_total`", "_total{"]
                .iter()
                .any(|end| OPERATIONS.contains(&format!("`{name}{end}")));
            assert!(found, "docs/operations.md lacks {name}");
        }
    }
}

#[test]
fn the_operations_manual_lists_every_reason_for_which_events_are_not_accepted() {
    let source = include_str!("../../../producer/src/error.rs");
    let (_, body) = source.split_once("fn reason(").unwrap();
    let (body, _) = body.split_once("fn status(").unwrap();
    let reasons: Vec<&str> = body.split('"').skip(1).step_by(2).collect();
    assert!(reasons.len() > 15, "{reasons:?}");
    // What is refused there is no event.
    let others = ["not_positive", "job_input", "not_found", "jobs_full"];
    for reason in reasons.into_iter().filter(|reason| !others.contains(reason)) {
        assert!(OPERATIONS.contains(&format!("`{reason}`")), "docs/operations.md lacks {reason}");
    }
}
