use offshoot_engine::*;
fn main() {
    for t in [1usize, 2] {
        let n = t.try_into().unwrap();
        println!("{t} threads: {:.1} GB/s {:.1} GFLOP/s", bench::read_bandwidth(n).unwrap() / 1e9, bench::peak_flops(n).unwrap() / 1e9);
    }
    if let Some(l) = std::env::args().nth(1) { println!("{:?}", deepen("models/target".as_ref(), "/tmp/engine-deep".as_ref(), l.parse().unwrap())); }
}
