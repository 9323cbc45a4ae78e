;; Arithmetic of network.js. Addresses and lengths in bytes where they are called so; vectors of four float32, so that lengths are
;; multiples of four. kernels.wasm, which pages hold, is made of this file: npx --package wabt wat2wasm kernels.wat
(module
  (import "page" "memory" (memory 1))

  (func $sum (param $v v128) (result f32)
    (f32.add
      (f32.add (f32x4.extract_lane 0 (local.get $v)) (f32x4.extract_lane 1 (local.get $v)))
      (f32.add (f32x4.extract_lane 2 (local.get $v)) (f32x4.extract_lane 3 (local.get $v)))))

  ;; The sums of four vectors, as one.
  (func $sums (param $a v128) (param $b v128) (param $c v128) (param $d v128) (result v128)
    (local $p v128) (local $q v128)
    (local.set $p (f32x4.add
      (i8x16.shuffle 0 1 2 3 16 17 18 19 4 5 6 7 20 21 22 23 (local.get $a) (local.get $b))
      (i8x16.shuffle 8 9 10 11 24 25 26 27 12 13 14 15 28 29 30 31 (local.get $a) (local.get $b))))
    (local.set $q (f32x4.add
      (i8x16.shuffle 0 1 2 3 16 17 18 19 4 5 6 7 20 21 22 23 (local.get $c) (local.get $d))
      (i8x16.shuffle 8 9 10 11 24 25 26 27 12 13 14 15 28 29 30 31 (local.get $c) (local.get $d))))
    (f32x4.add
      (i8x16.shuffle 0 1 2 3 4 5 6 7 16 17 18 19 20 21 22 23 (local.get $p) (local.get $q))
      (i8x16.shuffle 8 9 10 11 12 13 14 15 24 25 26 27 28 29 30 31 (local.get $p) (local.get $q))))

  (func $put (param $at i32) (param $v v128) (param $add i32)
    (if (local.get $add) (then (local.set $v (f32x4.add (local.get $v) (v128.load (local.get $at))))))
    (v128.store (local.get $at) (local.get $v)))

  ;; e to the power of x, at least -87: Cephes' expf.
  (func $exp (param $x v128) (result v128)
    (local $n v128) (local $r v128)
    (local.set $x (f32x4.max (f32x4.min (local.get $x) (v128.const f32x4 88 88 88 88)) (v128.const f32x4 -87 -87 -87 -87)))
    (local.set $n (f32x4.nearest (f32x4.mul (local.get $x) (v128.const f32x4 1.44269504 1.44269504 1.44269504 1.44269504))))
    (local.set $r (f32x4.sub
      (f32x4.sub (local.get $x) (f32x4.mul (local.get $n) (v128.const f32x4 0.693359375 0.693359375 0.693359375 0.693359375)))
      (f32x4.mul (local.get $n) (v128.const f32x4 -2.12194440e-4 -2.12194440e-4 -2.12194440e-4 -2.12194440e-4))))
    (local.set $x (v128.const f32x4 1.9875691500e-4 1.9875691500e-4 1.9875691500e-4 1.9875691500e-4))
    (local.set $x (f32x4.add (f32x4.mul (local.get $x) (local.get $r)) (v128.const f32x4 1.3981999507e-3 1.3981999507e-3 1.3981999507e-3 1.3981999507e-3)))
    (local.set $x (f32x4.add (f32x4.mul (local.get $x) (local.get $r)) (v128.const f32x4 8.3334519073e-3 8.3334519073e-3 8.3334519073e-3 8.3334519073e-3)))
    (local.set $x (f32x4.add (f32x4.mul (local.get $x) (local.get $r)) (v128.const f32x4 4.1665795894e-2 4.1665795894e-2 4.1665795894e-2 4.1665795894e-2)))
    (local.set $x (f32x4.add (f32x4.mul (local.get $x) (local.get $r)) (v128.const f32x4 1.6666665459e-1 1.6666665459e-1 1.6666665459e-1 1.6666665459e-1)))
    (local.set $x (f32x4.add (f32x4.mul (local.get $x) (local.get $r)) (v128.const f32x4 0.50000001201 0.50000001201 0.50000001201 0.50000001201)))
    (local.set $x (f32x4.add (f32x4.mul (f32x4.mul (local.get $x) (local.get $r)) (local.get $r))
      (f32x4.add (local.get $r) (v128.const f32x4 1 1 1 1))))
    (f32x4.mul (local.get $x)
      (i32x4.shl (i32x4.add (i32x4.trunc_sat_f32x4_s (local.get $n)) (v128.const i32x4 127 127 127 127)) (i32.const 23))))

  ;; weight (rows, columns), x (n, columns) -> y (n, rows), or added to it. Rows are a multiple of four; n is rounded up to an even number.
  (func (export "linear") (param $w0 i32) (param $x i32) (param $y i32) (param $n i32) (param $rows i32) (param $columns i32) (param $add i32)
    (local $r i32) (local $t i32) (local $i i32) (local $p i32) (local $q i32) (local $u i32) (local $w1 i32) (local $w2 i32) (local $w3 i32)
    (local $wide i32) (local $long i32) (local $v v128) (local $x0 v128) (local $x1 v128)
    (local $a0 v128) (local $b0 v128) (local $c0 v128) (local $d0 v128) (local $a1 v128) (local $b1 v128) (local $c1 v128) (local $d1 v128)
    (local.set $wide (i32.shl (local.get $columns) (i32.const 2)))
    (local.set $long (i32.shl (local.get $rows) (i32.const 2)))
    (loop $row
      (local.set $w1 (i32.add (local.get $w0) (local.get $wide)))
      (local.set $w2 (i32.add (local.get $w1) (local.get $wide)))
      (local.set $w3 (i32.add (local.get $w2) (local.get $wide)))
      (local.set $t (i32.const 0))
      (local.set $p (local.get $x))
      (local.set $u (i32.add (local.get $y) (i32.shl (local.get $r) (i32.const 2))))
      (loop $position
        (local.set $q (i32.add (local.get $p) (local.get $wide)))
        (local.set $a0 (v128.const i32x4 0 0 0 0)) (local.set $b0 (local.get $a0)) (local.set $c0 (local.get $a0)) (local.set $d0 (local.get $a0))
        (local.set $a1 (local.get $a0)) (local.set $b1 (local.get $a0)) (local.set $c1 (local.get $a0)) (local.set $d1 (local.get $a0))
        (local.set $i (i32.const 0))
        (loop $column
          (local.set $x0 (v128.load (i32.add (local.get $p) (local.get $i))))
          (local.set $x1 (v128.load (i32.add (local.get $q) (local.get $i))))
          (local.set $v (v128.load (i32.add (local.get $w0) (local.get $i))))
          (local.set $a0 (f32x4.add (local.get $a0) (f32x4.mul (local.get $v) (local.get $x0))))
          (local.set $a1 (f32x4.add (local.get $a1) (f32x4.mul (local.get $v) (local.get $x1))))
          (local.set $v (v128.load (i32.add (local.get $w1) (local.get $i))))
          (local.set $b0 (f32x4.add (local.get $b0) (f32x4.mul (local.get $v) (local.get $x0))))
          (local.set $b1 (f32x4.add (local.get $b1) (f32x4.mul (local.get $v) (local.get $x1))))
          (local.set $v (v128.load (i32.add (local.get $w2) (local.get $i))))
          (local.set $c0 (f32x4.add (local.get $c0) (f32x4.mul (local.get $v) (local.get $x0))))
          (local.set $c1 (f32x4.add (local.get $c1) (f32x4.mul (local.get $v) (local.get $x1))))
          (local.set $v (v128.load (i32.add (local.get $w3) (local.get $i))))
          (local.set $d0 (f32x4.add (local.get $d0) (f32x4.mul (local.get $v) (local.get $x0))))
          (local.set $d1 (f32x4.add (local.get $d1) (f32x4.mul (local.get $v) (local.get $x1))))
          (br_if $column (i32.lt_s (local.tee $i (i32.add (local.get $i) (i32.const 16))) (local.get $wide))))
        (call $put (local.get $u) (call $sums (local.get $a0) (local.get $b0) (local.get $c0) (local.get $d0)) (local.get $add))
        (local.set $u (i32.add (local.get $u) (local.get $long)))
        (call $put (local.get $u) (call $sums (local.get $a1) (local.get $b1) (local.get $c1) (local.get $d1)) (local.get $add))
        (local.set $u (i32.add (local.get $u) (local.get $long)))
        (local.set $p (i32.add (local.get $q) (local.get $wide)))
        (br_if $position (i32.lt_s (local.tee $t (i32.add (local.get $t) (i32.const 2))) (local.get $n))))
      (local.set $w0 (i32.add (local.get $w3) (local.get $wide)))
      (br_if $row (i32.lt_s (local.tee $r (i32.add (local.get $r) (i32.const 4))) (local.get $rows)))))

  ;; x (n) times its logistic function, in place.
  (func (export "silu") (param $x i32) (param $n i32)
    (local $v v128)
    (loop $next
      (local.set $v (v128.load (local.get $x)))
      (v128.store (local.get $x)
        (f32x4.div (local.get $v) (f32x4.add (v128.const f32x4 1 1 1 1) (call $exp (f32x4.neg (local.get $v))))))
      (local.set $x (i32.add (local.get $x) (i32.const 16)))
      (br_if $next (i32.gt_s (local.tee $n (i32.sub (local.get $n) (i32.const 4))) (i32.const 0)))))

  ;; x (n) -> e to the power of x times scale less most, in place; their sum.
  (func (export "soften") (param $x i32) (param $n i32) (param $scale f32) (param $most f32) (result f32)
    (local $v v128) (local $total v128)
    (loop $next
      (local.set $v (call $exp (f32x4.sub
        (f32x4.mul (v128.load (local.get $x)) (f32x4.splat (local.get $scale))) (f32x4.splat (local.get $most)))))
      (v128.store (local.get $x) (local.get $v))
      (local.set $total (f32x4.add (local.get $total) (local.get $v)))
      (local.set $x (i32.add (local.get $x) (i32.const 16)))
      (br_if $next (i32.gt_s (local.tee $n (i32.sub (local.get $n) (i32.const 4))) (i32.const 0))))
    (call $sum (local.get $total)))

  ;; A depthwise convolution at one position: window and taps (count, channels), bias (channels) -> y (channels).
  (func (export "conv") (param $window i32) (param $taps i32) (param $bias i32) (param $y i32) (param $channels i32) (param $count i32)
    (local $c i32) (local $k i32) (local $at i32) (local $wide i32) (local $v v128)
    (local.set $wide (i32.shl (local.get $channels) (i32.const 2)))
    (loop $channel
      (local.set $v (v128.load (i32.add (local.get $bias) (local.get $c))))
      (local.set $k (local.get $count))
      (local.set $at (local.get $c))
      (loop $tap
        (local.set $v (f32x4.add (local.get $v) (f32x4.mul
          (v128.load (i32.add (local.get $window) (local.get $at))) (v128.load (i32.add (local.get $taps) (local.get $at))))))
        (local.set $at (i32.add (local.get $at) (local.get $wide)))
        (br_if $tap (local.tee $k (i32.sub (local.get $k) (i32.const 1)))))
      (v128.store (i32.add (local.get $y) (local.get $c)) (local.get $v))
      (br_if $channel (i32.lt_s (local.tee $c (i32.add (local.get $c) (i32.const 16))) (local.get $wide)))))

  ;; A head at one position: state (width, size) decays and takes in dt x B; y (width) is what C reads of it, plus skip x, times the gate.
  (func (export "scan") (param $state i32) (param $x i32) (param $B i32) (param $C i32) (param $gate i32) (param $y i32)
    (param $width i32) (param $size i32) (param $keep f32) (param $dt f32) (param $skip f32)
    (local $i i32) (local $value f32) (local $added v128) (local $kept v128) (local $s v128) (local $read v128)
    (local.set $kept (f32x4.splat (local.get $keep)))
    (local.set $size (i32.shl (local.get $size) (i32.const 2)))
    (loop $row
      (local.set $value (f32.load (local.get $x)))
      (local.set $added (f32x4.splat (f32.mul (local.get $value) (local.get $dt))))
      (local.set $read (v128.const i32x4 0 0 0 0))
      (local.set $i (i32.const 0))
      (loop $next
        (local.set $s (f32x4.add (f32x4.mul (v128.load (local.get $state)) (local.get $kept))
          (f32x4.mul (local.get $added) (v128.load (i32.add (local.get $B) (local.get $i))))))
        (v128.store (local.get $state) (local.get $s))
        (local.set $read (f32x4.add (local.get $read) (f32x4.mul (local.get $s) (v128.load (i32.add (local.get $C) (local.get $i))))))
        (local.set $state (i32.add (local.get $state) (i32.const 16)))
        (br_if $next (i32.lt_s (local.tee $i (i32.add (local.get $i) (i32.const 16))) (local.get $size))))
      (f32.store (local.get $y) (f32.mul (f32.load (local.get $gate))
        (f32.add (call $sum (local.get $read)) (f32.mul (local.get $skip) (local.get $value)))))
      (local.set $x (i32.add (local.get $x) (i32.const 4)))
      (local.set $y (i32.add (local.get $y) (i32.const 4)))
      (local.set $gate (i32.add (local.get $gate) (i32.const 4)))
      (br_if $row (local.tee $width (i32.sub (local.get $width) (i32.const 1))))))

  ;; The products of a query (width) with `count` keys that are `stride` bytes apart -> y (count).
  (func (export "score") (param $query i32) (param $keys i32) (param $y i32) (param $count i32) (param $stride i32) (param $width i32)
    (local $i i32) (local $v v128)
    (local.set $width (i32.shl (local.get $width) (i32.const 2)))
    (loop $key
      (local.set $v (v128.const i32x4 0 0 0 0))
      (local.set $i (i32.const 0))
      (loop $next
        (local.set $v (f32x4.add (local.get $v) (f32x4.mul
          (v128.load (i32.add (local.get $query) (local.get $i))) (v128.load (i32.add (local.get $keys) (local.get $i))))))
        (br_if $next (i32.lt_s (local.tee $i (i32.add (local.get $i) (i32.const 16))) (local.get $width))))
      (f32.store (local.get $y) (call $sum (local.get $v)))
      (local.set $y (i32.add (local.get $y) (i32.const 4)))
      (local.set $keys (i32.add (local.get $keys) (local.get $stride)))
      (br_if $key (local.tee $count (i32.sub (local.get $count) (i32.const 1))))))

  ;; The sum of `count` values (width), `stride` bytes apart, in their shares (count), divided by the total -> y (width).
  (func (export "mix") (param $shares i32) (param $values i32) (param $y i32) (param $count i32) (param $stride i32) (param $width i32) (param $total f32)
    (local $i i32) (local $j i32) (local $at i32) (local $v v128)
    (local.set $width (i32.shl (local.get $width) (i32.const 2)))
    (loop $column
      (local.set $v (v128.const i32x4 0 0 0 0))
      (local.set $j (i32.const 0))
      (local.set $at (i32.add (local.get $values) (local.get $i)))
      (loop $next
        (local.set $v (f32x4.add (local.get $v) (f32x4.mul
          (v128.load32_splat (i32.add (local.get $shares) (i32.shl (local.get $j) (i32.const 2)))) (v128.load (local.get $at)))))
        (local.set $at (i32.add (local.get $at) (local.get $stride)))
        (br_if $next (i32.lt_s (local.tee $j (i32.add (local.get $j) (i32.const 1))) (local.get $count))))
      (v128.store (i32.add (local.get $y) (local.get $i)) (f32x4.div (local.get $v) (f32x4.splat (local.get $total))))
      (br_if $column (i32.lt_s (local.tee $i (i32.add (local.get $i) (i32.const 16))) (local.get $width))))))
