//! The README's tables of variables and `.env.example` say what the settings structs say.

use service::Variable;

const README: &str = include_str!("../../../../README.md");
const ENV_EXAMPLE: &str = include_str!("../../../../.env.example");

fn processes() -> [(&'static str, &'static [Variable]); 4] {
    [
        ("Producer", producer::Settings::VARIABLES),
        ("Consumer", consumer::Settings::VARIABLES),
        ("Poller", poller::Settings::VARIABLES),
        ("Every process", service::settings::COMMON),
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
