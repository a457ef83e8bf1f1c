//! Each answer of the simulator as a client sees it.

use std::time::{Duration, Instant};

use devservers::{Fault, Simulator};
use reqwest::StatusCode;
use serde_json::{Value, json};

async fn start() -> Simulator {
    // Installed once a process; a second time is refused and changes nothing.
    _ = rustls::crypto::ring::default_provider().install_default();
    Simulator::start(([127, 0, 0, 1], 0).into()).await.unwrap()
}

async fn get(simulator: &Simulator, path: &str) -> reqwest::Result<(StatusCode, String)> {
    let answer = reqwest::get(format!("{}{path}", simulator.base_url())).await?;
    let status = answer.status();
    Ok((status, answer.text().await?))
}

async fn random(simulator: &Simulator) -> (StatusCode, Value) {
    let (status, body) = get(simulator, "/v0/aircraft/random").await.unwrap();
    (status, serde_json::from_str(&body).unwrap())
}

#[tokio::test]
async fn a_random_aircraft_is_found_again_by_mode_s_and_by_registration() {
    let simulator = start().await;
    let (status, answer) = random(&simulator).await;
    assert_eq!(status, 200);
    let aircraft = &answer["response"]["aircraft"];
    assert_eq!(aircraft.as_object().unwrap().len(), 11);
    for name in ["mode_s", "registration"] {
        let path = format!("/v0/aircraft/{}", aircraft[name].as_str().unwrap().to_lowercase());
        let (status, body) = get(&simulator, &path).await.unwrap();
        assert_eq!((status.as_u16(), serde_json::from_str::<Value>(&body).unwrap()), (200, answer.clone()));
    }
    let (status, body) = get(&simulator, "/v0/aircraft/FFFFFF").await.unwrap();
    assert_eq!((status.as_u16(), body.as_str()), (404, "{\"response\":\"unknown aircraft\"}"));
    assert_eq!(simulator.requests(), 4);
}

#[tokio::test]
async fn it_says_that_it_lives_and_does_not_count_that() {
    let simulator = start().await;
    assert_eq!(get(&simulator, "/livez").await.unwrap().0, 200);
    assert_eq!(get(&simulator, "/v0/nonsense").await.unwrap().0, 404);
    assert_eq!(simulator.requests(), 0);
}

#[tokio::test]
async fn an_error_is_a_text_in_the_body() {
    let simulator = start().await;
    let faults = [
        (Fault::RateLimited { seconds: 5 }, 429, "rate limited for 5 seconds"),
        (Fault::ServerError, 500, "internal error"),
        (Fault::NotFound, 404, "unknown aircraft"),
        (Fault::ResponseIsText, 200, "aircraft"),
    ];
    for (fault, status, text) in faults {
        simulator.set_fault(Some(fault));
        assert_eq!(
            random(&simulator).await,
            (StatusCode::from_u16(status).unwrap(), json!({ "response": text }))
        );
    }
    simulator.set_fault(None);
    assert_eq!(random(&simulator).await.0, 200);
}

#[tokio::test]
async fn a_rate_limit_tells_its_seconds_nowhere_but_in_the_text() {
    let simulator = start().await;
    simulator.set_fault(Some(Fault::RateLimited { seconds: 5 }));
    let answer = reqwest::get(format!("{}/v0/aircraft/random", simulator.base_url())).await.unwrap();
    assert_eq!(answer.headers().get("retry-after"), None);
}

#[tokio::test]
async fn a_fault_for_two_requests_is_over_after_two() {
    let simulator = start().await;
    simulator.set_fault_for(2, Fault::ServerError);
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(random(&simulator).await.0.as_u16());
    }
    assert_eq!(statuses, [500, 500, 200]);
}

#[tokio::test]
async fn nonsense_is_answered_with_status_200() {
    let simulator = start().await;
    simulator.set_fault(Some(Fault::Html));
    let (status, body) = get(&simulator, "/v0/aircraft/random").await.unwrap();
    assert!(status == 200 && body.starts_with("<!doctype html>"), "{body}");
    simulator.set_fault(Some(Fault::TruncatedJson));
    let (status, body) = get(&simulator, "/v0/aircraft/random").await.unwrap();
    assert!(status == 200 && body.starts_with("{\"response\":{\"aircraft\":{"), "{body}");
    assert!(serde_json::from_str::<Value>(&body).unwrap_err().is_eof());
}

#[tokio::test]
async fn a_reset_comes_before_a_byte_of_the_answer() {
    let simulator = start().await;
    simulator.set_fault(Some(Fault::Reset));
    let error = get(&simulator, "/v0/aircraft/random").await.unwrap_err();
    assert!(error.is_request() && error.status().is_none(), "{error:?}");
    assert!(format!("{error:?}").contains("ConnectionReset"), "{error:?}");
    simulator.set_fault(None);
    assert_eq!(random(&simulator).await.0, 200);
}

#[tokio::test]
async fn a_field_can_be_new_and_three_can_be_null() {
    let simulator = start().await;
    simulator.set_fault(Some(Fault::ExtraField));
    let (_, answer) = random(&simulator).await;
    assert_eq!(answer["response"]["aircraft"]["first_flight"], "1998-05-17");
    simulator.set_fault(Some(Fault::Nulls));
    let (_, answer) = random(&simulator).await;
    let aircraft = answer["response"]["aircraft"].as_object().unwrap();
    assert_eq!((aircraft.len(), aircraft.values().filter(|value| value.is_null()).count()), (11, 3));
}

#[tokio::test]
async fn latency_delays_each_answer() {
    let simulator = start().await;
    let latency = Duration::from_millis(200);
    simulator.set_latency(latency);
    let before = Instant::now();
    assert_eq!(random(&simulator).await.0, 200);
    assert!(before.elapsed() >= latency);
    simulator.set_latency(Duration::ZERO);
    simulator.set_fault(Some(Fault::Slow(latency)));
    let before = Instant::now();
    assert_eq!(random(&simulator).await.0, 200);
    assert!(before.elapsed() >= latency);
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_slow_answer() {
    let simulator = start().await;
    let url = format!("{}/v0/aircraft/random", simulator.base_url());
    simulator.set_fault(Some(Fault::Slow(Duration::from_secs(600))));
    let asking = tokio::spawn(reqwest::get(url.clone()));
    while simulator.requests() == 0 {
        tokio::task::yield_now().await;
    }
    tokio::time::timeout(Duration::from_secs(10), simulator.stop()).await.unwrap();
    assert_eq!(asking.await.unwrap().unwrap().status(), 200);
    assert!(reqwest::get(url).await.unwrap_err().is_connect());
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let first = start().await;
    let error = Simulator::start(first.address()).await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("listening on {}: ", first.address())), "{error}");
}

async fn json(simulator: &Simulator, path: &str) -> Value {
    let (status, body) = get(simulator, path).await.unwrap();
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn now_s() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

#[tokio::test]
async fn samples_of_public_apis_have_their_formats_and_the_time_of_now() {
    let simulator = start().await;
    let quakes = json(&simulator, "/earthquakes/feed/v1.0/summary/all_hour.geojson").await;
    let features = quakes["features"].as_array().unwrap();
    assert_eq!((features.len(), &quakes["metadata"]["count"]), (10, &json!(10)));
    let updated =
        features.iter().map(|feature| feature["properties"]["updated"].as_i64().unwrap()).max().unwrap();
    assert!((now_s() * 1000 - updated).abs() < 70_000, "{updated}");
    let bikes = json(&simulator, "/v2/networks/velib?fields=stations").await;
    let time = bikes["network"]["stations"][0]["timestamp"].as_str().unwrap();
    assert!(time.ends_with(".505032+00:00Z") && time.len() == 33, "{time}");
    let states = json(&simulator, "/api/states/all?lamin=45.8").await;
    let rows = states["states"].as_array().unwrap();
    assert!(rows.len() == 6 && rows.iter().all(|row| row[1].as_str().unwrap().len() == 8), "{states}");
    assert!(rows[5][3].is_null() && rows[0][3].is_i64(), "{states}");
    let weather =
        json(&simulator, "/v1/forecast?latitude=52.52&longitude=13.42&current=temperature_2m").await;
    assert_eq!(weather["latitude"], 52.52);
    assert_eq!(weather["current"]["time"].as_str().unwrap().len(), "2026-11-28T20:15".len());
    let iss = json(&simulator, "/iss-now.json").await;
    assert!(
        (iss["timestamp"].as_i64().unwrap() - now_s()).abs() < 5
            && iss["iss_position"]["latitude"].is_string()
    );
    let prices = json(&simulator, "/api/v3/simple/price?ids=bitcoin,ethereum&vs_currencies=usd").await;
    assert!(prices["bitcoin"]["last_updated_at"].is_i64() && prices["ethereum"]["usd"].is_f64(), "{prices}");
    assert_eq!(simulator.requests(), 0, "they are no requests for an aircraft");
}

#[tokio::test]
async fn trades_are_paged_by_a_cursor_until_the_oldest() {
    let simulator = start().await;
    let mut url = format!("{}/products/BTC-USD/trades?limit=100", simulator.base_url());
    let (mut ids, mut pages) = (Vec::new(), 0);
    loop {
        let answer = reqwest::get(&url).await.unwrap();
        let cursor = answer.headers().get("cb-after").map(|cursor| cursor.to_str().unwrap().to_owned());
        let trades: Vec<Value> = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        ids.extend(trades.iter().map(|trade| trade["trade_id"].as_i64().unwrap()));
        pages += 1;
        let Some(cursor) = cursor else { break };
        url = format!("{}/products/BTC-USD/trades?limit=100&after={cursor}", simulator.base_url());
    }
    assert_eq!(pages, 3);
    assert!(ids.len() >= 235 && ids.windows(2).all(|pair| pair[0] == pair[1] + 1), "{ids:?}");
}

#[tokio::test]
async fn an_unchanged_list_of_events_is_a_304_with_the_interval() {
    let simulator = start().await;
    let client = reqwest::Client::new();
    let url = format!("{}/events?per_page=30", simulator.base_url());
    // The list changes each ten seconds, which may be between the two requests.
    for attempt in 0..3 {
        let first = client.get(&url).send().await.unwrap();
        let header = |name: &str| first.headers()[name].to_str().unwrap().to_owned();
        let (etag, link) = (header("etag"), header("link"));
        assert_eq!(header("x-poll-interval"), "60");
        assert!(link.contains("&page=2>; rel=\"next\""), "{link}");
        let again = client.get(&url).header("if-none-match", etag).send().await.unwrap();
        if again.status() == 304 {
            assert_eq!(again.text().await.unwrap(), "");
            break;
        }
        assert!(attempt < 2, "the list changes with each request");
    }
    let last = client.get(format!("{url}&page=3")).send().await.unwrap();
    assert!(last.headers().get("link").is_none());
    let events: Vec<Value> = serde_json::from_str(&last.text().await.unwrap()).unwrap();
    assert_eq!(events.len(), 30);
    assert!(events[0]["id"].as_str().unwrap().parse::<u64>().is_ok());
}
