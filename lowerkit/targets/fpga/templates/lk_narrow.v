// Gives LANES words one after the other, the lowest one first.
module lk_narrow #(
  parameter WIDTH = 8,
  parameter LANES = 2,
  parameter BITS = 1
) (
  input wire clk,
  input wire rst,
  input wire [WIDTH*LANES-1:0] in,
  input wire in_valid,
  output wire in_ready,
  output wire [WIDTH-1:0] out,
  output wire out_valid,
  input wire out_ready
);
  localparam [BITS:0] ALL = LANES;
  reg [WIDTH*LANES-1:0] held;
  reg [BITS:0] left;
  assign out = held[WIDTH-1:0];
  assign out_valid = left != 0;
  assign in_ready = (left == 0) | ((left == 1) & out_ready);
  wire taken = in_valid & in_ready;
  always @(posedge clk) begin
    if (taken) held <= in;
    else if (out_ready) held <= {{WIDTH{1'b0}}, held[WIDTH*LANES-1:WIDTH]};
  end
  always @(posedge clk) begin
    if (rst) left <= 0;
    else if (taken) left <= ALL;
    else if (out_valid & out_ready) left <= left - 1'b1;
  end
endmodule
