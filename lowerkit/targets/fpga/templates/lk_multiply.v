// A product, a cycle later.
module lk_multiply #(
  parameter A = 18,
  parameter B = 18,
  parameter SIGNED = 0
) (
  input wire clk,
  input wire [A-1:0] a,
  input wire [B-1:0] b,
  output reg [A+B-1:0] out
);
  generate
    if (SIGNED != 0) begin : g_signed
      wire signed [A+B-1:0] wide_a = {{B{a[A-1]}}, a};
      wire signed [A+B-1:0] wide_b = {{A{b[B-1]}}, b};
      always @(posedge clk) out <= wide_a * wide_b;
    end else begin : g_unsigned
      wire [A+B-1:0] wide_a = {{B{1'b0}}, a};
      wire [A+B-1:0] wide_b = {{A{1'b0}}, b};
      always @(posedge clk) out <= wide_a * wide_b;
    end
  endgenerate
endmodule
