use proptest::prelude::*;
use serde_json::Value;

use super::value::spent;
use super::{Filter, Input, MAX_DEPTH, Shape, function_names};

fn apply(filter: &str, json: &str) -> Result<String, String> {
    let filter = Filter::parse(filter).unwrap_or_else(|error| panic!("{filter}: {error}"));
    filter.apply(&Input::new(json, Some("k")))
}

fn refused(filter: &str) -> String {
    match Filter::parse(filter) {
        Ok(_) => panic!("accepted: {filter}"),
        Err(reason) => reason,
    }
}

const RECORD: &str = r#"{"a":{"b":2.5,"s":" Ab ","t":"2026-11-28T20:15:03Z"},"list":[3,1,2],"objects":[{"k":"x","v":1},{"k":"y","v":null}],"n":"12"}"#;

const EVERYDAY: &[(&str, &str)] = &[
    (".", RECORD),
    (".a.b", "2.5"),
    (".a[\"b\"]", "2.5"),
    (".a | {b, c: .s | trim}", r#"{"b":2.5,"c":"Ab"}"#),
    (".list[0]", "3"),
    (".list[-1:]", "[2]"),
    ("[.list[] | . * 10]", "[30,10,20]"),
    (".list | map(select(. > 1)) | sort", "[2,3]"),
    (".list | add / length", "2.0"),
    (".objects | map(.v // 0) | join(\"-\")", r#""1-0""#),
    (".objects | map({(.k): .v}) | add", r#"{"x":1,"y":null}"#),
    (".a | with_entries(select(.value != 2.5)) | keys", r#"["s","t"]"#),
    (".a | to_entries | map(.key)", r#"["b","s","t"]"#),
    (".a.b * 1000 | floor", "2500"),
    (".a.b * 1e6", "2500000.0"),
    ("if .a.b > 2 then \"big\" elif .a.b > 1 then \"mid\" else \"small\" end", r#""big""#),
    ("\"\\(.a.b):\\(.n)\"", r#""2.5:12""#),
    (".a as $x | $x.b + ($x | .b)", "5.0"),
    (". as {a: {b: $b}, $n} | [$b, $n]", r#"[2.5,"12"]"#),
    (".n | tonumber", "12"),
    (".n | tonumber + 1", "13"),
    (".a.b | tostring", r#""2.5""#),
    (".a.t | fromdate", "1795896903"),
    (".a.t | fromdate + 0.5 | todate", r#""2026-11-28T20:15:03.500Z""#),
    ("\"2026-11-28T20:15:03.005+01:00\" | fromdateiso8601", "1795893303.005"),
    ("1795896903 | todateiso8601", r#""2026-11-28T20:15:03Z""#),
    (".a.t | sub(\"T.*\"; \"\")", r#""2026-11-28""#),
    (".a.t | test(\"^2026\")", "true"),
    (".a.t | capture(\"(?<year>[0-9]+)\") | .year", r#""2026""#),
    (".a.s | ascii_downcase | ltrimstr(\" \")", r#""ab ""#),
    ("del(.a, .list, .objects)", r#"{"n":"12"}"#),
    (".a.b = 1 | .a.b", "1"),
    (".list |= map(. + 1) | .list", "[4,2,3]"),
    (".list[] |= . + 1 | .list", "[4,2,3]"),
    (".a.b += 1 | .a.b", "3.5"),
    (".x //= 5 | .x", "5"),
    ("$key", r#""k""#),
    (". + {key: $key} | .key", r#""k""#),
    ("first(.list[] | select(. < 3))", "1"),
    ("[.list | min, max]", "[1,3]"),
    (".list | any(. > 2)", "true"),
    (".list | all", "true"),
    ("[.a?, .list.x?] | length", "1"),
    ("try error(\"x\") catch .", r#""x""#),
    (".objects | group_by(.k) | map(length)", "[1,1]"),
    (".objects | sort_by(.k) | reverse | .[0].k", r#""y""#),
    (".list | unique | max_by(.)", "3"),
    (".n | split(\"\") | length", "2"),
    (".a | has(\"b\") and (.b | type) == \"number\"", "true"),
    ("{a: .a.b, \"b c\": 1, (.n): true}", r#"{"a":2.5,"b c":1,"12":true}"#),
];

#[test]
fn filters_of_everyday_use_are_accepted() {
    for (filter, output) in EVERYDAY {
        assert_eq!(
            apply(filter, RECORD).unwrap_or_else(|error| panic!("{filter}: {error}")),
            *output,
            "{filter}"
        );
    }
}

#[test]
fn every_function_of_the_list_compiles() {
    for (name, arity) in function_names() {
        let argument = match name {
            "del" => ".a",
            "map" | "map_values" | "select" | "first" | "error" | "any" | "all" => ".",
            name if name.ends_with("_by") || name == "with_entries" => ".",
            _ => "\"a\"",
        };
        let arguments = vec![argument; arity].join("; ");
        let call = if arity == 0 { name.to_owned() } else { format!("{name}({arguments})") };
        let filter = Filter::parse(&call).unwrap_or_else(|error| panic!("{call}: {error}"));
        for json in ["null", "[]", "{}", "\"a\"", "1", "[[1,{\"a\":2}]]", "{\"a\":\"b\"}"] {
            _ = filter.apply(&Input::new(json, None));
        }
    }
}

const RUNAWAY: &[(&str, &str)] = &[
    ("def f: f; f", "def is not allowed"),
    ("def f: f+1; f", "def is not allowed"),
    ("reduce range(100000) as $x (.; [.])", "reduce is not allowed"),
    ("foreach .[] as $x (0; .+$x)", "foreach is not allowed"),
    ("label $a | break $a", "label and break"),
    ("[range(1e18)]", "range/1"),
    ("last(range(1e18))", "last should have 0 arguments"),
    ("[.]|until(false; .)", "until/2"),
    ("[repeat(.)]", "repeat/1"),
    ("[while(true; .)]", "while/2"),
    ("..", ".. is not allowed"),
    (".. | .x", ".. is not allowed"),
    ("[recurse]", "recurse/0"),
    ("walk(.)", "walk/1"),
    ("paths", "paths/0"),
    ("env", "env is not allowed"),
    (".a|env", "env is not allowed"),
    ("$ENV", "$ENV is not defined"),
    ("now", "now is not allowed"),
    ("halt", "halt is not allowed"),
    ("halt_error", "halt_error is not allowed"),
    ("debug", "debug is not allowed"),
    ("debug(.)", "debug is not allowed"),
    ("stderr", "stderr is not allowed"),
    ("input", "input is not allowed"),
    ("inputs", "inputs is not allowed"),
    ("import \"a\" as a; .", "nor a jq filter"),
    (".s | fromjson", "fromjson/0"),
    ("@base64", "@ formats"),
    ("@json \"\\(.)\"", "@ formats"),
    (".a * .b", "* needs a number"),
    (". * .", "* needs a number"),
    (".a *= .b", "* needs a number"),
    ("[.a[] | .b[]]", "more than one []"),
    (".a[].b[]", "more than one []"),
    ("map(map(.))", "more than one []"),
    ("map(.[])", "more than one []"),
    (".[] | map(.x)", "more than one []"),
    ("[.[] | any(. > 1)]", "more than one []"),
    ("{a: .x[], b: .y[]}", "several outputs"),
    ("[.a[] + .b[]]", "several outputs"),
    (".a[] as $x | .", "several outputs"),
    ("[.list[] | select(. == (1, 2))] | length", "several outputs"),
    ("select(.a[])", "several outputs"),
    (". as $r | map({a: $r})", "bound outside"),
    ("map($key)", "bound outside"),
    (".a[.b]", "an index should be"),
    (".a[.b:]", "a bound of a slice"),
    ("contains(.b)", "an argument of contains"),
    ("index(\"a\")", "index/1"),
    ("test(.re)", "an argument of test"),
    ("sub(.re; \"\")", "the regular expression of sub"),
    ("test(\"(a{100}){100}\")", "one {n}"),
    ("test(\"\\\\pL{200}\\\\pL{200}\")", "one {n}"),
    ("test(\"a*\"; \"g\")", "no flag g"),
    ("sub(\"\\\\d{2}-\\\\d{2}\"; \"\")", "one {n}"),
    ("splits(\"a\")", "splits/1"),
    ("getpath([\"a\"])", "getpath/1"),
    ("limit(1; .)", "limit/2"),
    ("$x", "$x is not defined"),
    (".a as $key | .b[$key]", "$key is the key of the record"),
    ("foo", "foo/0"),
    ("map(.a) = 1", "left side of an update"),
];

#[test]
fn runaway_filters_are_refused() {
    for (filter, reason) in RUNAWAY {
        let error = refused(filter);
        assert!(error.contains(reason), "{filter}: {error}");
    }
}

#[test]
fn a_filter_that_doubles_its_input_too_often_is_refused() {
    for step in
        ["[., .]", ". + .", "\"\\(.)\\(.)\"", "{a: ., b: .}", "tojson", "(. , .)", ". as $x | [$x, $x]"]
    {
        let filter = vec![step; 40].join(" | ");
        let error = refused(&filter);
        assert!(error.contains("too large") || error.contains("too deeply"), "{step}: {error}");
    }
}

#[test]
fn a_record_that_is_too_large_for_its_filter_is_a_fault() {
    let string = format!(r#"{{"a":"{}"}}"#, "x".repeat(1_000_000));
    assert_eq!(apply(".a * 1000", &format!(r#"{{"b":"{}","a":3}}"#, "x".repeat(10_000))).unwrap(), "3000");
    assert!(apply("[.,.,.,.] | [.,.,.,.] | tojson", &string).unwrap_err().contains("too large"));
    assert_eq!(apply(".a", &string).unwrap().len(), 1_000_002);
    assert!(apply(".a | gsub(\"x\"; \"y\")", &string).unwrap_err().contains("too large"));
    assert!(apply("map_values(test(\"x\"))", &string).unwrap_err().contains("too large"));
    assert_eq!(apply(".a | sub(\"x*\"; \"y\")", &string).unwrap(), "\"y\"");
}

#[test]
fn long_and_deep_filters_neither_hang_nor_overflow_the_stack() {
    for (open, close) in [
        ("(", ")"),
        ("[", "]"),
        ("-", ""),
        ("try ", ""),
        ("if ", " then . end"),
        ("{a:", "}"),
        ("\"\\(", ")\""),
    ] {
        for depth in [100, 1000, 2000, 4000] {
            let text = format!("{}.{}", open.repeat(depth), close.repeat(depth));
            // Parentheses add nothing to the syntax tree.
            assert!(Filter::parse(&text).is_err() || depth == 100 || open == "(", "{open} {depth}");
        }
    }
    for glue in ["|", ",", "+", " and ", "//"] {
        let error = refused(&vec!["."; 600].join(glue));
        assert!(error.contains("too long") || error.contains("too large"), "{glue}: {error}");
    }
    assert!(refused(&".".repeat(10_000)).contains("4096 bytes"));
}

#[test]
fn a_syntax_error_has_its_place() {
    assert!(refused(".a | ]").contains("wrong at character 6"), "{}", refused(".a | ]"));
    assert!(refused("{a: }").contains("wrong at character"), "{}", refused("{a: }"));
    assert!(refused("").contains("wrong at character 1"), "{}", refused(""));
    assert!(refused("id").contains("a field is .id or the JSON Pointer /id"), "{}", refused("id"));
}

#[test]
fn numbers_that_are_moved_keep_their_text() {
    for number in [
        "9007199254740993",
        "123456789012345678901234567890",
        "0.1",
        "0.10",
        "1e400",
        "-0.0",
        "1.0",
        "1",
        "1E5",
        "-7",
        "2e-7",
    ] {
        let json = format!(r#"{{"a":[{number}]}}"#);
        assert_eq!(apply(".", &json).unwrap(), json);
        assert_eq!(apply("{x: .a[0]}", &json).unwrap(), format!(r#"{{"x":{number}}}"#));
        assert_eq!(apply(".a[0] | tostring", &json).unwrap(), format!("\"{number}\""));
    }
    // The exceptions.
    assert_eq!(apply(".", "-0").unwrap(), "0");
    assert_eq!(apply(". + 0", "0.10").unwrap(), "0.1");
    assert_eq!(apply(". + 1", "9007199254740992").unwrap(), "9007199254740993");
    assert_eq!(apply(". * 10", "123456789012345678901234567890").unwrap(), "1234567890123456789012345678900");
    assert_eq!(apply(". / 1", "9007199254740993").unwrap(), "9007199254740992.0");
    assert_eq!(apply("floor", "9007199254740993.0").unwrap(), "9007199254740992");
}

#[test]
fn an_output_that_is_not_json_or_not_alone_is_a_fault() {
    for (filter, json, reason) in [
        (". + 0", "1e400", "not JSON"),
        ("1 / .", "0", "not JSON"),
        ("[0 / .]", "0", "not JSON"),
        ("empty", "1", "no output"),
        (".[]", "[]", "no output"),
        (".[]", "[1,2]", "more than one output"),
        (".,.", "1", "more than one output"),
        (".a", "1", "the jq filter failed"),
        ("error(\"x\")", "1", "the jq filter failed"),
        ("tonumber", "\"x\"", "tonumber needs a number"),
        ("tonumber", "\" 1\"", "tonumber needs a number"),
    ] {
        let error = apply(filter, json).unwrap_err();
        assert!(error.contains(reason), "{filter}: {error}");
    }
}

#[test]
fn an_error_shows_no_value_of_the_record() {
    let record = r#"{"s":"s3cret","o":{"s3cret":1},"a":["s3cret"]}"#;
    for (filter, reason) in [
        (".s.x", "a value cannot be indexed like this"),
        (".s[0]", "a value cannot be indexed like this"),
        (".s + 1", "values cannot be calculated with each other"),
        (".o - .a", "values cannot be calculated with each other"),
        (".s | keys", "a value cannot be used as"),
        (".o | trim", "a value cannot be used as string"),
        (".s[]", "a value cannot be used as iterable (array or object)"),
        (".s | todate", "todate needs seconds"),
        (".s | fromdate", "fromdate needs an RFC 3339 time"),
        (".s | tonumber", "tonumber needs a number"),
        (".s | error", "an error with a value of the record"),
        (".o | error", "an error with a value of the record"),
        ("error(.s)", "an error with a value of the record"),
        ("error(\"no price\")", "no price"),
        ("true | length", "an error with a value of the record"),
        ("{(.o): 1}", "not JSON"),
        (".a |= fromdate", "fromdate needs"),
        ("-.s", "a value cannot be used as number"),
    ] {
        let error = apply(filter, record).unwrap_err();
        assert!(error.contains(reason) && !error.contains("s3cret"), "{filter}: {error}");
    }
}

#[test]
fn a_deep_record_or_text_is_a_fault_and_does_not_end_the_process() {
    let deep = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    assert_eq!(apply(".", &deep(MAX_DEPTH)).unwrap(), deep(MAX_DEPTH));
    assert!(apply(".", &deep(MAX_DEPTH + 1)).unwrap_err().contains("nesting levels"));
    assert!(apply(".", &deep(100_000)).unwrap_err().contains("nesting levels"));
    assert!(apply("tonumber", &format!("\"{}\"", deep(100_000))).unwrap_err().contains("number"));
    assert!(apply(".", &"9".repeat(100_000)).unwrap_err().contains("number of more than"));
    let brackets = format!("\"{}\"", "[".repeat(100_000));
    assert_eq!(apply(".", &brackets).unwrap(), brackets);
}

#[test]
fn the_deepest_allowed_filter_runs_on_a_small_stack() {
    let nested = |open: &str, close: &str, depth| format!("{}.{}", open.repeat(depth), close.repeat(depth));
    for (filter, added) in [
        (vec!["[.]"; 60].join("|"), 60),
        (nested("[", "]", 60), 60),
        (nested("[.|", "]", 30), 30),
        (nested("if . then ", " else . end", 60), 0),
        (nested("try ", "", 60), 0),
        (nested("(. as $x|", ")", 20), 0),
        (nested("first(", ")", 60), 0),
        (vec!["."; 60].join("//"), 0),
    ] {
        let filter = Filter::parse(&filter).unwrap_or_else(|error| panic!("{filter}: {error}"));
        let record = "[".repeat(MAX_DEPTH) + &"]".repeat(MAX_DEPTH);
        // The stack of a worker of the runtime.
        let thread = std::thread::Builder::new().stack_size(2 * 1024 * 1024);
        let output = thread.spawn(move || filter.apply(&Input::new(&record, None))).unwrap().join().unwrap();
        assert_eq!(output.unwrap().len(), 2 * (MAX_DEPTH + added));
    }
}

#[test]
fn escapes_and_unusual_texts_survive() {
    for text in ["\u{7f}", "\u{1}\n\t\"\\", "é😀", "\u{2028}"] {
        let json = serde_json::to_string(text).unwrap();
        let output = apply(".", &json).unwrap();
        assert_eq!(serde_json::from_str::<String>(&output).unwrap(), text);
    }
    assert!(apply(".", r#""\ud800""#).unwrap_err().contains("surrogate"));
}

#[test]
fn the_shape_of_a_record_ignores_brackets_in_strings() {
    let shape = |json| {
        let shape = Shape::of(json);
        (shape.depth, shape.values)
    };
    assert_eq!(shape(r#"{"a":["[[\"[[,:"]}"#), (2, 3));
    assert_eq!(shape("1"), (0, 0));
    assert_eq!(Shape::of("[12345,1]").longest_scalar, 5);
}

#[test]
fn strings_and_objects_are_not_multiplied() {
    let record = r#"{"price":"6225.32","n":3,"o":{"a":1},"list":["a","b"]}"#;
    for filter in [
        ".price * 1000",
        "1000 * .price",
        "(.list | add) * 2",
        ".list | map(. * 2)",
        ".price *= 2",
        ".o * 2",
        "\"x\" * 0",
    ] {
        assert!(apply(filter, record).unwrap_err().contains("* needs numbers on both sides"), "{filter}");
    }
    assert_eq!(apply(".n * 1000000000", record).unwrap(), "3000000000");
    assert_eq!(apply("(.price | tonumber) * 100", record).unwrap(), "622532.0");
}

/// Records of `bytes` bytes that are mostly short values.
fn large_records(bytes: usize) -> Vec<String> {
    let list = |item: &str| format!("[{}0]", format!("{item},").repeat(bytes / (item.len() + 1)));
    let text = |part: &str| format!("\"{}\"", part.repeat(bytes / part.len()));
    let members: Vec<String> = (0..bytes / 10).map(|index| format!(r#""{index}":"a""#)).collect();
    vec![
        list("0"),
        list("\"\""),
        list("\"a\\n\""),
        list("[]"),
        list("1e308"),
        list(r#"{"a":"b"}"#),
        list(r#"{"key":"a","value":[1]}"#),
        text("a,"),
        text("\\\""),
        text("\\u0001"),
        text("\u{7f}"),
        format!("{{{}}}", members.join(",")),
        format!(r#"{{"a":{},"s":{}}}"#, list("\"x\""), text("b")),
    ]
}

/// Runs a filter. Fails if it makes more than the bounds that are known before.
fn check_bounds(filter: &Filter, json: &str) -> Result<String, String> {
    let input = Input::new(json, Some("k"));
    let (text, work) = filter.growth.bounds(input.written());
    let output = filter.apply(&input);
    let start: String = json.chars().take(20).collect();
    if filter.growth.allows(input.written()) {
        let spent = spent();
        let most = spent.text.max(spent.items) as f64;
        assert!(most <= work, "{filter:?} on {} bytes of {start}: {spent:?} > {work}", json.len());
    }
    if let Ok(output) = &output {
        let most = output.len() as f64;
        assert!(most <= text, "{filter:?} on {} bytes of {start}: {most} > {text}", json.len());
    }
    output
}

#[test]
fn no_filter_makes_more_of_a_large_record_than_its_bound() {
    let separator = format!("{}\\n", "-".repeat(3000));
    let mut filters: Vec<String> = [
        "add",
        "(.a | add) * 1000",
        "map(. * 1000)",
        "map(. + 1)",
        "map(tojson) | join(\", \")",
        "tojson | tojson | tojson",
        "tojson | tojson | tojson | tojson | type",
        "\"\\(.) \\n\\n\\n\\n\\n\\n\\n\\n\\n\\n\"",
        "\"\\n\\n\\n\\n\\n\\n\\n\\n\\n\\n\\(.)\"",
        ". / \"\"",
        ".s / \"\" | map(. + \"x\")",
        "./= \"\"",
        "(., .) |= [., .]",
        "(., ., ., .) |= {a: ., b: .}",
        ". as $x | 1 | [$x, $x]",
        ". as $x | null | [$x, $x] as $y | null | [$y, $y]",
        "[1, 2, 3] | .[] | \"some text\"",
        "[1, 2, 3] as $x | [$x[] | \"some text\"]",
        "with_entries(.value |= tostring)",
        "to_entries | map({(.key | tostring): .value}) | add",
        "map_values([., .])",
        ".[1:3] |= map([., .])",
        ".s[1:3] |= . + .",
        ".s[2:] = \"\\u0001\"",
        "try error catch [., .]",
        "try (.a + {}) catch tojson",
        "first(.[] | select(tojson | test(\"x\")))",
        "del(.[] | select(tojson | tojson | length > 5))",
        "sort_by(tojson) | group_by(tojson) | map(.[0])",
        ".s | capture(\"(?<a>(?<b>(?<c>(?<d>.*))))\") | [., .]",
        ".s | sub(\"(?<a>(?<b>.*))\"; \"\\(.a)\\(.b)\\(.a)\")",
        ".s | gsub(\"b\"; \"<b>\")",
        ".s | gsub(\"\"; \"-\")",
        ".s | split(\"b\") | map(. + \"x\") | add",
        ".a as $a | .s as $s | {a: $a, s: $s, $key}",
        "if tojson | length > 5 then [., .] else {a: .} end",
        "{\"a\\(.)\": 1}",
        ".[\"\\(.)\"] = 1",
        "[floor?, (.[] | floor?)]",
    ]
    .map(str::to_owned)
    .into();
    filters.push(format!("join(\"{separator}\")"));
    filters.push(format!("map(. + \"{separator}\")"));
    filters.push(format!(".s | gsub(\"b\"; \"{separator}\")"));
    filters.push(format!(". as {{a: $x}} | {{$x, y: \"{separator}\"}}"));
    for filter in &filters {
        let Ok(filter) = Filter::parse(filter) else { panic!("{filter}: {}", refused(filter)) };
        for json in large_records(16 * 1024).iter().chain(&large_records(100)) {
            _ = check_bounds(&filter, json);
        }
    }
}

#[test]
fn a_separator_with_an_escape_counts_with_its_whole_length() {
    let filter = format!("join(\"{}\\n\")", "-".repeat(4000));
    let json = format!("[{}0]", "0,".repeat(500_000));
    assert!(apply(&filter, &json).unwrap_err().contains("too large"));
    assert_eq!(apply(&filter, "[1,2]").unwrap().len(), 4006);
}

#[test]
fn growth_that_the_output_does_not_show_is_refused() {
    for (step, end) in [
        ("tojson", "type"),
        ("[., .]", "length"),
        ("[., .]", ". == 1"),
        (". as $x | 1 | [$x, $x]", "0"),
        ("(. + .)", "test(\"x\")"),
        ("(., ., ., ., ., ., ., ., ., ., ., ., ., ., ., .) |= [., .]", "0"),
        (
            "del(select(tojson | tojson | tojson | tojson | tojson | tojson | tojson | tojson | tojson | type))",
            "0",
        ),
    ] {
        let filter = format!("{} | {end}", vec![step; 30].join(" | "));
        let error = refused(&filter);
        assert!(error.contains("too large") || error.contains("too deeply"), "{step}: {error}");
    }
}

#[test]
fn a_run_that_takes_too_much_memory_ends_and_no_catch_stops_that() {
    let filter =
        Filter { growth: Filter::parse("1").unwrap().growth, ..Filter::parse("try [., .] catch 1").unwrap() };
    assert!(filter.apply(&Input::new("1", None)).is_ok());
    let doubled = "[., .] | ".repeat(3);
    let copy = format!("try ({doubled} tojson | . + . | . + . | . + . | . + . | . + .) catch 1");
    let filter = Filter { growth: Filter::parse("1").unwrap().growth, ..Filter::parse(&copy).unwrap() };
    let json = format!("\"{}\"", "x".repeat(1_000_000));
    assert_eq!(
        filter.apply(&Input::new(&json, None)).unwrap_err(),
        "the record is too large for this jq filter"
    );
    assert!(filter.apply(&Input::new("1", None)).is_ok());
}

#[test]
fn a_large_regular_expression_is_not_compiled_for_each_of_many_values() {
    let json = format!("[{}\"\"]", "\"\",".repeat(10_000));
    let large = r#"map(test("^([a-z]-[a-z]-[a-z]-){100}$"))"#;
    assert!(apply(large, &json).unwrap_err().contains("too large"));
    assert_eq!(apply(large, "[\"a\"]").unwrap(), "[false]");
    assert!(refused("test(\"(aaaaaaaaaaaaaaaa){1,1000000}\")").contains("too large"));
}

#[test]
fn filters_of_everyday_use_take_large_records() {
    let members: Vec<String> = (0..20_000).map(|index| format!(r#""k{index}":{index}"#)).collect();
    let object = format!("{{{}}}", members.join(","));
    for filter in
        ["with_entries(select(.value > 5)) | length", "map_values(. + 1) | length", "to_entries | length"]
    {
        assert!(apply(filter, &object).is_ok(), "{filter}: {:?}", apply(filter, &object));
    }
    let list = format!("{{\"rows\":[{}0],\"t\":1}}", "{\"a\":1.5,\"b\":\"x\"},".repeat(20_000));
    for filter in [
        ".rows | length",
        "[.rows[] | .a? // 0] | add",
        "{t, n: (.rows | length), first: .rows[0]}",
        ".t as $t | {at: $t, last: .rows[-1]}",
        ".rows | map(select(.a? > 1)) | length",
    ] {
        assert!(apply(filter, &list).is_ok(), "{filter}: {:?}", apply(filter, &list));
    }
}

#[test]
fn a_record_of_too_many_values_is_a_fault() {
    let json = format!("[{}0]", "0,".repeat(super::MAX_VALUES));
    assert!(apply(".[0]", &json).unwrap_err().contains("keys and values"));
}

#[test]
fn slices_are_updated_as_in_jq() {
    for (filter, json, output) in [
        (".[1:3] |= map(. * 10)", "[1,2,3,4]", "[1,20,30,4]"),
        (".[:2] |= []", "[1,2,3,4]", "[3,4]"),
        (".[-1:] = [7,8]", "[1,2,3]", "[1,2,7,8]"),
        (".[3:1] = [9]", "[1,2,3,4]", "[1,2,3,9,4]"),
        (".[5:] = [9]", "[1,2]", "[1,2,9]"),
        ("del(.[1:3])", "[1,2,3,4]", "[1,4]"),
        (".[1:3] |= ascii_upcase", "\"abcd\"", "\"aBCd\""),
    ] {
        assert_eq!(
            apply(filter, json).unwrap_or_else(|error| panic!("{filter}: {error}")),
            output,
            "{filter}"
        );
    }
    assert!(apply(".[1:] |= 1", "[1,2]").is_err());
    assert!(apply(".[1:] |= 1", "1").is_err());
}

#[test]
fn functions_of_this_crate_are_as_in_jq() {
    for (filter, json, output) in [
        (
            "map(length)",
            r#"[null,-5,-1.5,"aé",[1],{"a":1},-123456789012345678901]"#,
            "[0,5,1.5,2,1,1,123456789012345678901]",
        ),
        ("length", "-9223372036854775808", "9223372036854775808"),
        ("[has(0), has(2), has(-1)]", "[1,2]", "[true,false,true]"),
        ("[has(\"a\"), has(\"b\")]", r#"{"a":null}"#, "[true,false]"),
        ("map(contains(\"b\"))", r#"["abc","a","b"]"#, "[true,false,true]"),
        ("contains(\"\")", "\"a\"", "true"),
        (".[0] |= empty", "[1,2]", "[2]"),
        (".a |= empty", r#"{"a":1,"b":2}"#, r#"{"b":2}"#),
        (".[-1] = 3", "[1,2]", "[1,3]"),
        (".[5]? = 3", "[1]", "[1]"),
        ("[.[] | -.]", "[1,-2.50]", "[-1,2.50]"),
        (". - [1]", "[1,2,1]", "[2]"),
        (". / \",\"", "\"a,b\"", r#"["a","b"]"#),
        ("map_values(empty)", r#"{"a":1}"#, "{}"),
    ] {
        assert_eq!(
            apply(filter, json).unwrap_or_else(|error| panic!("{filter}: {error}")),
            output,
            "{filter}"
        );
    }
    assert!(apply("has(\"a\")", "[1]").is_err());
    assert!(apply(". % 0", "1").unwrap_err().contains("calculated"));
}

/// Parts of filters without others in them.
const LEAVES: &[&str] = &[
    ".",
    ".a",
    ".[0]",
    ".a.b?",
    "1",
    "0.5",
    "\"x\"",
    "null",
    "$key",
    ".[1:]",
    "length",
    "keys",
    "tostring",
    "tojson",
    "tonumber",
    "add",
    "floor",
    "sort",
    "reverse",
    "to_entries",
    "not",
    "type",
    "min",
    "unique",
    "trim",
    "ascii_upcase",
    "fromdate",
    "todate",
    "values",
    "first",
    "last",
    "any",
    "abs",
    "round",
    "join(\",\")",
    "split(\",\")",
    "test(\"a*\")",
    "gsub(\"a*\"; \"b\")",
    "has(\"a\")",
    "-.",
    ".[]",
    "from_entries",
    "utf8bytelength",
    "join(\"-----------------\\n\")",
    "\"x\\n\\n\"",
    "(., .)",
    "[., .]",
    ". / \"\"",
    "capture(\"(?<a>(?<b>.*))\")",
    "sub(\"(?<a>.)\"; .a + .a)",
    "(., .) |= [., .]",
    "select(tojson | test(\"x\"))",
    ".[1:3]",
];

/// Filters that are allowed, apart from iterations in others.
fn filter() -> impl Strategy<Value = String> {
    let leaf = prop::sample::select(LEAVES);
    leaf.prop_map(str::to_owned).prop_recursive(4, 24, 3, |inner| {
        let two = (inner.clone(), inner.clone());
        prop_oneof![
            two.clone().prop_map(|(a, b)| format!("({a}) | ({b})")),
            two.clone().prop_map(|(a, b)| format!("({a}) + ({b})")),
            two.clone().prop_map(|(a, b)| format!("({a}) - ({b})")),
            two.clone().prop_map(|(a, b)| format!("({a}) / ({b})")),
            two.clone().prop_map(|(a, b)| format!("({a}) % ({b})")),
            two.clone().prop_map(|(a, b)| format!("({a}) // ({b})")),
            two.clone().prop_map(|(a, b)| format!("({a}) < ({b})")),
            two.clone().prop_map(|(a, b)| format!("if {a} then {b} else . end")),
            two.clone().prop_map(|(a, b)| format!("{{a: ({a}), b: ({b})}}")),
            two.clone().prop_map(|(a, b)| format!("(try ({a}) catch .), ({b})")),
            two.clone().prop_map(|(a, b)| format!("({a}) as $v | ({b}) | [$v, .]")),
            two.clone().prop_map(|(a, b)| format!("try ({a} | error) catch ({b})")),
            two.prop_map(|(a, b)| format!("{{a: ({a}), b: ({b})}} | (.a, .b) |= [., {b}]")),
            inner.clone().prop_map(|a| format!("[{a}]")),
            inner.clone().prop_map(|a| format!("\"a\\({a})\"")),
            inner.clone().prop_map(|a| format!("map({a})")),
            inner.clone().prop_map(|a| format!("with_entries({a})")),
            inner.clone().prop_map(|a| format!(".a |= ({a})")),
            inner.clone().prop_map(|a| format!("sort_by({a})")),
            inner.prop_map(|a| format!("({a}) * 3")),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn an_allowed_filter_stays_within_its_bounds_on_large_records(filter in filter()) {
        if let Ok(filter) = Filter::parse(&filter) {
            for json in large_records(4 * 1024) {
                let output = check_bounds(&filter, &json);
                prop_assert_ne!(output, Err("the jq filter failed".to_owned()), "a panic in {:?}", filter);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn an_allowed_filter_never_panics_and_stays_within_its_bound(
        filter in filter(),
        json in prop::sample::select(vec![
            "null", "[]", "{}", "[1,2,3]", r#"{"a":{"b":[1,-2.5,"x"]},"c":"2026-11-28T20:15:03Z"}"#, "1e308",
            "9223372036854775807", "-9223372036854775807", "1795896903", r#""aaa,b""#, r#"[["a",1],["b",null]]"#,
            r#"[{"key":"a","value":1e400}]"#, "0", "123456789012345678901234567890", r"[2026,10,28,20,15,3,6,331]",
        ]),
    ) {
        if let Ok(filter) = Filter::parse(&filter) {
            let output = check_bounds(&filter, json);
            prop_assert_ne!(output, Err("the jq filter failed".to_owned()), "a panic in {:?} on {}", filter, json);
        }
    }

    #[test]
    fn any_text_is_a_filter_or_a_fault(text in any::<String>(), code in "[.|a-c(){}\\[\\]\"0-9$, +*/:;@-]{0,40}") {
        _ = Filter::parse(&text);
        _ = Filter::parse(&code);
    }

    #[test]
    fn the_identity_keeps_all_but_spaces(value in value()) {
        let json = value.to_string();
        prop_assert_eq!(serde_json::from_str::<Value>(&apply(".", &json).unwrap()).unwrap(), value);
    }
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(any::<String>(), inner, 0..5)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}
